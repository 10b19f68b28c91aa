"""Columns of record tables as numpy arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ttsim_des.records.arrow import arrow_column, numpy_column


def column(table: pa.Table, name: str) -> NDArray[np.int64]:
    """An integer column."""
    values: NDArray[np.int64] = numpy_column(table.column(name))
    return values


def flags(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """A boolean column."""
    values: NDArray[np.bool_] = numpy_column(table.column(name))
    return values


def is_in(table: pa.Table, name: str, *values: str) -> NDArray[np.bool_]:
    """Where a text column has one of these values."""
    mask: NDArray[np.bool_] = numpy_column(pc.is_in(table.column(name), value_set=arrow_column(values, pa.string())))
    return mask
