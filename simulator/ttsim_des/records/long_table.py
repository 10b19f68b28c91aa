"""A table of more rows than memory should hold: columns and slices of it are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ttsim_des.records.arrow import arrow_column, text_column
from ttsim_des.records.store import ColumnStore, row_slices


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one store, and the columns that have one value in all of them."""

    store: ColumnStore
    constants: Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class LongTable:
    """The rows of `parts` one after the other, or in `order` (row numbers; of a single part).

    `texts` are the words of text columns, which the stores hold as numbers.
    """

    schema: pa.Schema
    parts: Sequence[Part]
    texts: Mapping[str, Sequence[str]]
    order: NDArray[np.int32] | None = None

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(part.store.num_rows for part in self.parts)

    @property
    def is_long(self) -> bool:
        """Whether some of it lies on disk."""
        return any(part.store.is_spilled for part in self.parts)

    def numbers(self, name: str) -> NDArray[np.int64]:
        """A column as it is stored: whole numbers, of text columns the numbers of their words."""
        if self.order is None:
            return self._stored(name)
        values = np.empty(self.num_rows, dtype=np.int64)
        start = 0
        for piece in self.pieces(name):
            values[start : start + piece.size] = piece
            start += piece.size
        return values

    def pieces(self, name: str) -> Iterator[NDArray[np.int64]]:
        """`numbers`, some rows at a time: takes half the memory, since numpy widens row numbers that it is given."""
        values = self._stored(name)
        if self.order is None:
            yield values
            return
        for part in row_slices(len(values)):
            yield values[self.order[part]]

    def _stored(self, name: str) -> NDArray[np.int64]:
        columns = [
            np.full(part.store.num_rows, part.constants[name]) if name in part.constants else part.store.column(name)
            for part in self.parts
        ]
        if len(columns) == 1:
            return columns[0]
        values: NDArray[np.int64] = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
        return values

    def column(self, name: str) -> pa.Array:
        """A column of the table."""
        if self.schema.field(name).type != pa.string():
            return arrow_column(self.numbers(name), self.schema.field(name).type)
        if name in self.texts:
            return text_column(self.numbers(name), self.texts[name])
        words = [str(part.constants[name]) for part in self.parts]
        rows = np.array([part.store.num_rows for part in self.parts], dtype=np.int64)
        return text_column(np.repeat(np.arange(len(words)), rows), words)

    def to_table(self) -> pa.Table:
        """All of it in memory."""
        return pa.Table.from_arrays([self.column(name) for name in self.schema.names], schema=self.schema)

    def slices(self, rows: int) -> Iterator[pa.Table]:
        """Tables of `rows` rows each, in order."""
        for start in range(0, self.num_rows, rows):
            yield self._slice(start, min(start + rows, self.num_rows))

    def _slice(self, start: int, stop: int) -> pa.Table:
        pieces: list[LongTable] = []
        first = 0
        for part in self.parts:
            end = first + part.store.num_rows
            low, high = max(start, first), min(stop, end)
            if low < high:
                if self.order is None:
                    rows = _rows_between(part.store, low - first, high - first)
                else:
                    rows = _rows_of(part.store, self.order[low:high])
                pieces.append(LongTable(self.schema, [Part(rows, part.constants)], self.texts))
            first = end
        return pa.concat_tables([piece.to_table() for piece in pieces])


def whole(table: pa.Table | LongTable) -> pa.Table:
    """A table in memory, however long."""
    return table.to_table() if isinstance(table, LongTable) else table


def _rows_between(store: ColumnStore, low: int, high: int) -> ColumnStore:
    """Rows `low` to `high` - 1 of a store as a store of their own."""
    chosen = ColumnStore(store.names)
    starts = store.starts.tolist()
    for index, (start, end) in enumerate(zip(starts, [*starts[1:], store.num_rows], strict=True)):
        if low < end and start < high:
            columns = store.block(index, *store.names)
            chosen.append(np.stack([column[max(low - start, 0) : high - start] for column in columns]))
    return chosen


def _rows_of(store: ColumnStore, rows: NDArray[np.integer[Any]]) -> ColumnStore:
    """Some rows of a store, in the order asked for, as a store of their own."""
    starts = store.starts
    block_of = np.searchsorted(starts, rows, side="right") - 1
    blocks = np.unique(block_of)
    loaded = [np.stack(store.block(int(index), *store.names)) for index in blocks]
    offsets = np.cumsum([0, *(block.shape[1] for block in loaded)])
    places = rows - starts[block_of] + offsets[np.searchsorted(blocks, block_of)]
    chosen = ColumnStore(store.names)
    chosen.append(np.ascontiguousarray(np.concatenate(loaded, axis=1)[:, places]))
    return chosen
