"""The run directory: written aside and renamed into place, so that it is there in full or not at all.

    scenario.toml  summary.json  queries.parquet  requests.parquet  manifest.json
    [steps.parquet  token_gaps.parquet  drafts.parquet]

Parquet files depend on the tables alone: the same tables give the same bytes on one machine and library set.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ttsim_des.errors import InputError, Problem, bad_input
from ttsim_des.metrics.summary import SUMMARY_SCHEMA
from ttsim_des.records.long_table import LongTable
from ttsim_des.records.tables import DRAFTS, QUERIES, REQUESTS, SCHEMA_VERSION, STEPS, TOKEN_GAPS, Tables
from ttsim_des.report.manifest import MANIFEST_SCHEMA, digest

ALWAYS: Final = {"queries": QUERIES, "requests": REQUESTS}
ON_REQUEST: Final = {"steps": STEPS, "token_gaps": TOKEN_GAPS, "drafts": DRAFTS}
ROW_GROUP_ROWS: Final = 1 << 16
VERSION_KEY: Final = b"ttsim_des.schema"
END_KEY: Final = b"ttsim_des.end_ns"


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run directory as read. Tables that were not saved are empty; `has_steps` tells."""

    path: Path
    summary: dict[str, Any]
    tables: Tables
    manifest: dict[str, Any]
    has_steps: bool


def require_free(out: Path) -> None:
    """Raise InputError unless `out` can become a new run directory: ask before a long run, not after."""
    if out.exists() or out.is_symlink():
        raise bad_input("this run directory exists already and is never overwritten", key="--out", where=str(out))
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise bad_input(f"{parent} is not a directory", key="--out", where=str(out))
    if not os.access(parent, os.W_OK):
        raise bad_input(f"no permission to write in {parent}", key="--out", where=str(out))


def write_run(
    out: Path,
    *,
    summary: Mapping[str, Any],
    tables: Tables,
    scenario_toml: str,
    manifest: Mapping[str, Any],
    steps: bool,
) -> Path:
    """Write a run directory and return its path; `steps` adds the tables of steps and token gaps.

    Raises InputError when `out` exists or cannot be written; nothing is left behind then.
    """

    def fill(aside: Path) -> None:
        write_text(aside / "scenario.toml", scenario_toml)
        write_text(aside / "summary.json", to_json(summary))
        for name in [*ALWAYS, *(ON_REQUEST if steps else ())]:
            _write_parquet(aside / f"{name}.parquet", getattr(tables, name), tables.end_ns)

    return publish(out, manifest, fill)


def publish(out: Path, manifest: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """A directory that `fill` writes files into, with a manifest of their digests, renamed to `out` when it is whole.

    Raises InputError when `out` exists or cannot be written; nothing is left behind then.
    """
    require_free(out)
    aside: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        aside.chmod(0o755)
        fill(aside)
        files = {file.name: digest(file) for file in sorted(aside.iterdir())}
        write_text(aside / "manifest.json", to_json({**manifest, "files": files}))
        _sync(aside)
        if out.exists():  # somebody else was faster
            require_free(out)
        aside.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise bad_input(f"cannot write the run directory: {error.strerror}", key="--out", where=str(out)) from None
    finally:
        if aside is not None and aside.exists():
            shutil.rmtree(aside, ignore_errors=True)
    return out


def read_run(path: Path) -> SavedRun:
    """Read a run directory; InputError lists everything that is missing, damaged or from a newer version."""
    if not path.is_dir():
        raise bad_input(
            "there is no such run directory", where=str(path), expected="a directory that `run` has written"
        )
    problems: list[Problem] = []
    summary = _read_json(path / "summary.json", SUMMARY_SCHEMA, problems)
    manifest = _read_json(path / "manifest.json", MANIFEST_SCHEMA, problems)
    loaded: dict[str, pa.Table] = {}
    for name, schema in (ALWAYS | ON_REQUEST).items():
        file = path / f"{name}.parquet"
        if name in ON_REQUEST and not file.exists() and file.name not in manifest.get("files", {}):
            continue
        table = _read_parquet(file, schema, problems)
        if table is not None:
            loaded[name] = table
    if problems:
        raise InputError(problems)
    has_steps = all(name in loaded for name in ON_REQUEST)
    end_ns = int(loaded["queries"].schema.metadata[END_KEY])
    tables = Tables(
        **{name: loaded.get(name, schema.empty_table()) for name, schema in (ALWAYS | ON_REQUEST).items()},
        end_ns=end_ns,
    )
    return SavedRun(path, summary, tables, manifest, has_steps)


def to_json(value: Mapping[str, Any]) -> str:
    """JSON as the run directory holds it: indented, in the order given, no NaN."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """A text file that is on the disk when this returns."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(path: Path, table: pa.Table | LongTable, end_ns: int) -> None:
    """Fixed row groups, each with one chunk per column, so that how the table came about leaves no trace."""
    metadata = {VERSION_KEY: str(SCHEMA_VERSION).encode(), END_KEY: str(end_ns).encode()}
    schema = table.schema.with_metadata(metadata)
    # Few numbers come twice, and most are near the one before: differences take less time and bytes than dictionaries.
    words = [field.name for field in schema if pa.types.is_string(field.type)]
    numbers = {field.name: "DELTA_BINARY_PACKED" for field in schema if pa.types.is_integer(field.type)}
    groups = table.slices(ROW_GROUP_ROWS) if isinstance(table, LongTable) else [table.combine_chunks()]
    with path.open("wb") as file:
        with pq.ParquetWriter(
            file, schema, compression="zstd", version="2.6", use_dictionary=words or False, column_encoding=numbers
        ) as writer:
            for group in groups:
                writer.write_table(group.combine_chunks().cast(schema), row_group_size=ROW_GROUP_ROWS)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_json(path: Path, newest: int, problems: list[Problem]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(Problem("this file of the run is missing", where=str(path)))
        return {}
    except (OSError, ValueError):
        problems.append(Problem("this file is damaged", where=str(path), expected="JSON as `run` writes it"))
        return {}
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int) or not isinstance(content, dict):
        problems.append(Problem("this file has no schema version", where=str(path), expected=f"schema {newest}"))
        return {}
    if schema != newest:
        problems.append(_wrong_version(path, schema, newest))
    return content


def _wrong_version(path: Path, found: int, newest: int) -> Problem:
    expected = f"schema {newest}" + ("; a newer ttsim-des can read it" if found > newest else "")
    return Problem(f"this file has schema {found}", where=str(path), expected=expected)


def _read_parquet(path: Path, schema: pa.Schema, problems: list[Problem]) -> pa.Table | None:
    try:
        table = pq.read_table(path, memory_map=False)
    except FileNotFoundError:
        problems.append(Problem("this file of the run is missing", where=str(path)))
        return None
    except (OSError, pa.ArrowException):
        problems.append(Problem("this file is damaged or truncated", where=str(path), expected="a Parquet file"))
        return None
    metadata = table.schema.metadata or {}
    try:
        found = int(metadata.get(VERSION_KEY, b""))
        int(metadata.get(END_KEY, b""))
    except ValueError:
        problems.append(Problem("this Parquet file was not written by ttsim-des", where=str(path)))
        return None
    if found != SCHEMA_VERSION:
        problems.append(_wrong_version(path, found, SCHEMA_VERSION))
        return None
    if not table.schema.equals(schema, check_metadata=False):
        problems.append(Problem("the columns of this file are not those of its schema version", where=str(path)))
        return None
    return table
