"""Columns of numbers from a user's CSV, JSON Lines or Parquet file, with errors that name the row.

Used for traces and for tables of lengths. Everything that can be wrong with the file ends as an `InputError` whose
problem carries the scenario key that named the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsim_des.errors import InputError, bad_input, nearest_name

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SUFFIXES = (".csv", ".jsonl", ".parquet")
TOKENS_MAX = 10_000_000
"""The largest token count that a scenario may state (see `scenario.schema.Tokens`)."""


def locate_file(file: str, base_dir: Path, key: str) -> Path:
    """The path that `file` of a scenario stands for: relative to the scenario, else a bundled trace's plain name.

    Raises `InputError` (with `key`) when there is no such regular file or its suffix is none that we read.
    """
    if "\0" in file or not file:
        raise bad_input("not a file name", key=key)
    path = base_dir / file
    bundled: list[str] = []
    try:
        found = path.is_file()
        if not found and not path.exists() and len(Path(file).parts) == 1:
            bundled = _bundled_traces()
            if file in bundled:
                path, found = _bundled_root() / file, True
    except OSError as error:  # a name too long for the file system, a folder that may not be read
        raise bad_input(f"cannot open {path}: {error.strerror}", key=key) from None
    if not found:
        what = "is not a regular file" if path.exists() else "does not exist"
        raise bad_input(f"file {path} {what}", key=key, nearest=nearest_name(file, bundled))
    if path.suffix.lower() not in SUFFIXES:
        raise bad_input(f"cannot tell the format of {path}", key=key, expected="a .csv, .jsonl or .parquet file")
    return path


def _bundled_root() -> Path:
    from ttsim_des.assets import root

    return root("traces")


def _bundled_traces() -> list[str]:
    folder = _bundled_root()
    return sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES) if folder.is_dir() else []


def read_columns(path: Path, required: Sequence[tuple[str, str]], optional: Sequence[str], file_key: str) -> pa.Table:
    """The named columns of a file, in memory; an optional column that the file lacks is left out.

    `required` holds (column, scenario key that asked for it). Raises `InputError` when the file cannot be parsed,
    lacks a required column, names one twice or has no rows.
    """
    import pyarrow as pa

    try:
        names, load = _open(path)
        problems = []
        for column, key in required:
            if names.count(column) != 1:
                message = f"{path} has {'no' if column not in names else 'more than one'} column {column!r}"
                expected = f"one of: {', '.join(names[:20])}" if names else ""
                problems.append(bad_input(message, key=key, expected=expected, nearest=nearest_name(column, names)))
        if problems:
            raise InputError(problem for error in problems for problem in error.problems)
        wanted = [column for column, _ in required] + [column for column in optional if names.count(column) == 1]
        table = load(list(dict.fromkeys(wanted)))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise bad_input(f"cannot read {path}: {reason}", key=file_key) from None
    if table.num_rows == 0:
        raise bad_input(f"{path} has no rows", key=file_key)
    return table


def _open(path: Path) -> tuple[list[str], Any]:
    """The column names of a file, and a function that loads some of them."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        return list(file.schema_arrow.names), lambda columns: file.read(columns=columns)
    if suffix == ".jsonl":
        import pyarrow.json as pj

        table = pj.read_json(path)
    else:
        import pyarrow.csv as pc

        table = pc.read_csv(path)
    return list(table.column_names), table.select


def whole_numbers(table: pa.Table, column: str, path: Path, key: str, *, low: int, high: int) -> NDArray[np.int64]:
    """A column as int64, each value a whole number in [low, high]; `InputError` names the first row that is not."""
    import numpy as np

    values = _numeric(table, column, path, key)
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= low) & (values <= high))
        if values.dtype.kind == "f":
            wrong |= values != np.floor(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _bad_row(path, column, row, values[row], f"a whole number from {low} to {high}", key)
    return values.astype(np.int64)


def real_numbers(table: pa.Table, column: str, path: Path, key: str, *, low: float, high: float) -> NDArray[np.float64]:
    """A column as float64, each value finite and in [low, high]; `InputError` names the first row that is not."""
    import numpy as np

    values = _numeric(table, column, path, key).astype(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= low) & (values <= high))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _bad_row(path, column, row, values[row], f"a number from {low:g} to {high:g}", key)
    return values


def codes(table: pa.Table, column: str, path: Path, key: str) -> NDArray[np.int64]:
    """A column of labels (numbers or text) as 0, 1, 2 ... in order of first appearance."""
    import numpy as np
    import pyarrow as pa

    values = table.column(column).combine_chunks()
    if pa.types.is_nested(values.type):
        raise bad_input(f"column {column!r} of {path} holds {values.type}", key=key, expected="numbers or text")
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise _bad_row(path, column, row, "nothing", "a label", key)
    if pa.types.is_dictionary(values.type):  # it may list labels that no row has
        values = values.dictionary_decode()
    return np.asarray(values.dictionary_encode().indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _numeric(table: pa.Table, column: str, path: Path, key: str) -> NDArray[Any]:
    import numpy as np
    import pyarrow as pa

    values = table.column(column).combine_chunks()
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise _bad_row(path, column, row, "nothing", "a number", key)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise bad_input(f"column {column!r} of {path} holds {values.type}", key=key, expected="numbers")
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _bad_row(path: Path, column: str, row: int, value: object, expected: str, key: str) -> InputError:
    return bad_input(f"column {column!r} of {path}, data row {row + 1}: {value}", key=key, expected=expected)
