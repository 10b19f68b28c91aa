"""Columns of record tables as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ttsim_des.records.arrow import arrow_column, numpy_column
from ttsim_des.records.long_table import LongTable


def column(table: pa.Table | LongTable, name: str) -> NDArray[np.int64]:
    """An integer column."""
    if isinstance(table, LongTable):
        return table.numbers(name)
    values: NDArray[np.int64] = numpy_column(table.column(name))
    return values


def pieces(table: pa.Table | LongTable, name: str) -> Iterator[NDArray[np.int64]]:
    """An integer column, of a long table some rows at a time."""
    return table.pieces(name) if isinstance(table, LongTable) else iter([column(table, name)])


def flags(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """A boolean column."""
    values: NDArray[np.bool_] = numpy_column(table.column(name))
    return values


def is_in(table: pa.Table | LongTable, name: str, *values: str) -> NDArray[np.bool_]:
    """Where a text column has one of these values."""
    if isinstance(table, LongTable):
        wanted = [number for number, word in enumerate(table.texts[name]) if word in values]
        return np.concatenate([np.isin(piece, wanted) for piece in table.pieces(name)])
    mask: NDArray[np.bool_] = numpy_column(pc.is_in(table.column(name), value_set=arrow_column(values, pa.string())))
    return mask
