"""Rows of whole numbers by columns: in memory while they are few, beyond that in a temporary file without a name.

A file without a name is gone with the process, however that ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import IO

import numpy as np
from numpy.typing import NDArray

IntMatrix = NDArray[np.int64]
"""(columns, rows)."""

ROWS_IN_MEMORY = 1 << 17
BLOCK_BYTES = 1 << 20
"""Rows become columns when there are so many bytes of them."""
_ITEM_BYTES = 8


ROWS_AT_A_TIME = 1 << 18
"""What a long column is looked at in pieces of, so that what is worked out between its ends takes little memory."""


def row_slices(rows: int) -> Iterator[slice]:
    """So many rows, ROWS_AT_A_TIME of them at a time."""
    return (slice(start, start + ROWS_AT_A_TIME) for start in range(0, rows, ROWS_AT_A_TIME))


def row_packer(columns: int) -> Callable[..., bytes]:
    """A function of so many whole numbers: the row that they make, packed, to be added to a `bytearray` of rows."""
    return Struct(f"={columns}q").pack


def take_rows(rows: bytearray, columns: int) -> IntMatrix:
    """Packed rows as a matrix of (columns, rows); none are left."""
    block = np.frombuffer(rows, dtype=np.int64).reshape(-1, columns).T.copy()
    rows.clear()
    return block


class ColumnStore:
    """Blocks of rows with the same columns. Appending is all that changes it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.num_rows = 0
        self._counts: list[int] = []
        self._blocks: list[IntMatrix] = []
        self._file: IO[bytes] | None = None
        self._offsets: list[int] = []

    def append(self, block: IntMatrix) -> None:
        """Add a block of (columns, rows)."""
        if not block.shape[1]:
            return
        self.num_rows += block.shape[1]
        self._counts.append(block.shape[1])
        self._blocks.append(block)
        if self.num_rows > ROWS_IN_MEMORY:
            self._spill()

    @property
    def is_spilled(self) -> bool:
        """Whether the rows lie on disk."""
        return self._file is not None

    def column(self, name: str) -> NDArray[np.int64]:
        """All values of one column."""
        return self.columns(name)[0]

    def columns(self, *names: str) -> list[NDArray[np.int64]]:
        """All values of some columns."""
        columns = [np.empty(self.num_rows, dtype=np.int64) for _ in names]
        start = 0
        for block in self.blocks(*names):
            stop = start + len(block[0])
            for column, values in zip(columns, block, strict=True):
                column[start:stop] = values
            start = stop
        return columns

    def blocks(self, *names: str) -> Iterator[list[NDArray[np.int64]]]:
        """Some columns, block by block in order."""
        for index in range(len(self._counts)):
            yield self.block(index, *names)

    def block(self, index: int, *names: str) -> list[NDArray[np.int64]]:
        """Some columns of one block."""
        places = [self.names.index(name) for name in names]
        if self._file is None:
            return [self._blocks[index][place] for place in places]
        rows, offset, handle = self._counts[index], self._offsets[index], self._file.fileno()
        size = rows * _ITEM_BYTES
        return [np.frombuffer(os.pread(handle, size, offset + place * size), dtype=np.int64) for place in places]

    @property
    def starts(self) -> NDArray[np.int64]:
        """The row with which each block begins."""
        counts = np.array(self._counts, dtype=np.int64)
        return np.cumsum(counts) - counts

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ttsim-des-")  # noqa: SIM115  # lives as long as this store
        for block in self._blocks:
            self._offsets.append(self._file.tell())
            self._file.write(block.tobytes())
        self._file.flush()
        self._blocks = []
