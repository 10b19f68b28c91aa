"""Kernel profile of one GPU system: what was measured, read from profiles/gpus/<system>.

The format is documented in docs/profiles.md. Latencies are in microseconds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ttsim_des import assets
from ttsim_des.errors import InputError, bad_input, nearest_name
from ttsim_des.latency.unequal import STREAM_SHARE, StreamRate
from ttsim_des.remembered import remembered

SCHEMA = 1
HERE = Path()
COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "n", "k", "m", "latency_us"),
    "context_attention": ("kv_dtype", "head_dim", "kv_heads", "heads", "batch", "query", "latency_us"),
    "decode_attention": ("kv_dtype", "head_dim", "kv_heads", "heads", "batch", "context", "latency_us"),
    "all_reduce": ("mode", "ranks", "bytes", "latency_us"),
    "moe": ("dtype", "hidden", "intermediate", "experts", "top_k", "tp", "ep", "tokens", "latency_us"),
}
OPTIONAL = ("all_reduce", "moe")
"""Families that a profile may lack: a single GPU has no all-reduce, a dense model no experts."""
DEFAULT_SMS = 132
"""Streaming multiprocessors where meta.toml names none: those of a Hopper SXM."""
TEXT_COLUMNS = ("dtype", "kv_dtype", "mode")

Columns = dict[str, np.ndarray[Any, Any]]
"""Arrays of one length by column name."""


@dataclass(frozen=True, slots=True)
class GpuMeta:
    """What meta.toml says of the system."""

    name: str
    device: str
    memory_gib: float
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float | None
    peak_flops: Mapping[str, float]
    elementwise_bandwidth_share: float
    elementwise_launch_us: float
    kv_stream: StreamRate
    source: str
    licence: str
    date: str


@dataclass(frozen=True, slots=True, eq=False)
class GpuProfile:
    """Meta data and the measured tables, with the columns of `COLUMNS`. Equal only to itself.

    `tables[family][label]` are the numeric columns of the rows whose text column (dtype, KV dtype or mode) is `label`.
    """

    meta: GpuMeta
    tables: Mapping[str, Mapping[str, Columns]]

    def labels(self, family: str) -> list[str]:
        """The dtypes, KV dtypes or modes that were measured, sorted."""
        return sorted(self.tables.get(family, {}))

    def select(self, family: str, label: str, **equal: int) -> Columns:
        """The rows of one family and label where every named column has the given value."""
        columns = self.tables[family][label]
        chosen = _rows_where(columns, equal)
        return {name: values[chosen] for name, values in columns.items()}

    def values(self, family: str, label: str, column: str, **equal: int) -> list[int]:
        """The distinct values of one column among those rows, sorted; none for a label that was not measured."""
        if label not in self.tables.get(family, {}):
            return []
        columns = self.tables[family][label]
        ordered = np.sort(columns[column][_rows_where(columns, equal)])
        is_first = np.ones(len(ordered), dtype=bool)
        is_first[1:] = ordered[1:] != ordered[:-1]
        found: list[int] = ordered[is_first].tolist()  # np.unique imports numpy.ma
        return found


def _rows_where(columns: Columns, equal: Mapping[str, int]) -> NDArray[np.bool_]:
    chosen = np.ones(len(columns["latency_us"]), dtype=bool)
    for name, value in equal.items():
        chosen &= columns[name] == value
    return chosen


def load_profile(name: str, base_dir: Path = HERE) -> GpuProfile:
    """The profile `name`; see `profile_directory`. InputError also when it cannot be used."""
    return read_profile(profile_directory(name, base_dir))


def profile_directory(name: str, base_dir: Path) -> Path:
    """Of a bundled profile by its name, or any directory: a name with a slash in it.

    Directories are looked for from `base_dir` (the scenario's) and then from where the program runs.
    InputError (key `cluster.gpu`) when there is none.
    """
    known = assets.names("gpus")
    if name in known:
        return assets.root("profiles") / "gpus" / name
    if "/" in name:
        for directory in (base_dir / name, Path(name)):
            if directory.is_dir():
                return directory
    raise bad_input(
        f"there is no directory {name}" if "/" in name else f"unknown GPU {name!r}",
        key="cluster.gpu",
        expected=f"one of {', '.join(known)}, or a profile's directory, with a slash in its name (./my-gpu)",
        nearest=nearest_name(name, known),
    )


@remembered
def read_profile(directory: Path) -> GpuProfile:
    """The profile in `directory`; InputError naming the file that is missing, truncated, too new or incomplete."""
    meta = _read_meta(directory / "meta.toml")
    tables = {
        family: _read_table(directory / f"{family}.parquet", columns)
        for family, columns in COLUMNS.items()
        if family not in OPTIONAL or (directory / f"{family}.parquet").exists()
    }
    return GpuProfile(meta, tables)


def _read_meta(path: Path) -> GpuMeta:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be read: {error}") from None
    schema = table.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise _bad(path, "has no schema version")
    if schema > SCHEMA:
        raise _bad(path, f"has schema version {schema}, newer than this program understands", f"{SCHEMA} or older")
    try:
        return GpuMeta(
            name=path.parent.name,
            device=str(table["device"]),
            memory_gib=_positive(path, "memory_gib", table["memory_gib"]),
            bandwidth_bytes_per_s=_positive(path, "bandwidth_bytes_per_s", table["bandwidth_bytes_per_s"]),
            link_bytes_per_s=_optional(path, "link_bytes_per_s", table),
            peak_flops={dtype: _positive(path, dtype, value) for dtype, value in table["peak_flops"].items()},
            elementwise_bandwidth_share=_positive(path, "bandwidth_share", table["elementwise"]["bandwidth_share"]),
            elementwise_launch_us=_positive(path, "launch_us", table["elementwise"]["launch_us"]),
            kv_stream=_kv_stream(path, table),
            source=str(table["source"]),
            licence=str(table["licence"]),
            date=str(table["date"]),
        )
    except KeyError as error:
        raise _bad(path, f"lacks {error.args[0]}") from None
    except (TypeError, AttributeError):
        raise _bad(path, "has a table where a value belongs, or the other way round") from None


def _optional(path: Path, name: str, table: Mapping[str, Any]) -> float | None:
    return _positive(path, name, table[name]) if name in table else None


def _kv_stream(path: Path, table: Mapping[str, Any]) -> StreamRate:
    """The optional table unequal_contexts; what it lacks is derived from the bandwidth."""
    given = table.get("unequal_contexts", {})
    sms = int(_positive(path, "sms", given.get("sms", DEFAULT_SMS)))
    share = STREAM_SHARE * float(table["bandwidth_bytes_per_s"]) / sms
    rate = _positive(path, "stream_bytes_per_s", given.get("stream_bytes_per_s", share))
    launch_us = given.get("launch_us", 0)
    launch_us = _positive(path, "launch_us", launch_us) if launch_us else 0.0
    return StreamRate(sms, rate, launch_us, is_measured="stream_bytes_per_s" in given)


def _read_table(path: Path, columns: tuple[str, ...]) -> dict[str, Columns]:
    if not path.is_file():
        raise _bad(path, "is missing")
    try:
        # Unlike read_table, this does not import pyarrow.dataset; for so few rows threads cost more than they save.
        table = pq.ParquetFile(path).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _bad(path, f"is truncated or not Parquet: {str(error).splitlines()[0]}") from None
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise _bad(path, f"lacks the columns {', '.join(missing)}", f"the columns {', '.join(columns)}")
    if table.num_rows == 0:
        raise _bad(path, "has no rows")
    for column in columns:
        kind = table.schema.field(column).type
        right = pa.types.is_string(kind) if column in TEXT_COLUMNS else _is_number(kind)
        if not right or table[column].null_count:
            raise _bad(path, f"has values in column {column} that are not {_wanted(column)}")
    numbers = {column: _array(table[column]) for column in columns if column not in TEXT_COLUMNS}
    latency_us = numbers["latency_us"]
    if not (np.isfinite(latency_us).all() and (latency_us > 0).all()):
        raise _bad(path, "has latencies that are not positive numbers")
    text = next(column for column in columns if column in TEXT_COLUMNS)
    encoded = pa.concat_arrays(table[text].chunks).dictionary_encode()
    codes = np.from_dlpack(encoded.indices)
    return {
        label: {column: values[codes == code] for column, values in numbers.items()}
        for code, label in enumerate(encoded.dictionary.to_pylist())
    }


def _array(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column of numbers without nulls. Unlike pyarrow's own to_numpy this does not import pandas."""
    return np.from_dlpack(pa.concat_arrays(column.chunks))


def _wanted(column: str) -> str:
    return "text" if column in TEXT_COLUMNS else "numbers"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _positive(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise _bad(path, f"has {name} = {value!r}", "a positive number")
    return float(value)


def _bad(path: Path, message: str, expected: str = "") -> InputError:
    return bad_input(f"profile file {path} {message}", key="cluster.gpu", expected=expected)
