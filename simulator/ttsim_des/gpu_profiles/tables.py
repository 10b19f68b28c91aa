"""CSV files of other people's profiles, read with errors that name file and line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from ttsim_des.errors import bad_input, nearest_name


class Line:
    """One row of a CSV file; columns are asked for by name and kind."""

    __slots__ = ("_cells", "_where")

    def __init__(self, cells: Mapping[str, str], where: str) -> None:
        """`where`: file and line, for messages."""
        self._cells = cells
        self._where = where

    def text(self, column: str) -> str:
        """A cell; InputError when the table has no such column."""
        cell = self._cells.get(column)
        if cell is None:
            nearest = nearest_name(column, list(self._cells))
            raise bad_input(f"there is no column {column}", where=self._where, nearest=nearest)
        return cell

    def number(self, column: str) -> float:
        """A number; InputError otherwise."""
        cell = self.text(column)
        try:
            return float(cell)
        except ValueError:
            raise bad_input(f"{column} = {cell!r}", where=self._where, expected="a number") from None

    def whole(self, column: str) -> int:
        """A whole number, however it was written."""
        return int(self.number(column))

    def has(self, column: str) -> bool:
        """Whether the cell is there and filled."""
        return bool(self._cells.get(column))


def lines_of(path: Path) -> Iterator[Line]:
    """The rows of a CSV file; InputError when it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            for cells in reader:
                yield Line(cells, f"{path}:{reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise bad_input(f"this table cannot be read: {reason}", where=str(path), expected="a CSV file") from None
