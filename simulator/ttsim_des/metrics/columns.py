"""Columns of record tables as numpy arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def column(table: pa.Table, name: str) -> NDArray[np.int64]:
    """An integer column."""
    values: NDArray[np.int64] = table.column(name).to_numpy()
    return values


def flags(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """A boolean column."""
    values: NDArray[np.bool_] = table.column(name).to_numpy()
    return values


def is_in(table: pa.Table, name: str, *values: str) -> NDArray[np.bool_]:
    """Where a text column has one of these values."""
    mask: NDArray[np.bool_] = pc.is_in(table.column(name), value_set=pa.array(values, pa.string())).to_numpy()
    return mask
