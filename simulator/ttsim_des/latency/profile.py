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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ttsim_des import assets
from ttsim_des.errors import InputError, bad_input, nearest_name

SCHEMA = 1
COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "n", "k", "m", "latency_us"),
    "context_attention": ("kv_dtype", "head_dim", "kv_heads", "heads", "batch", "query", "latency_us"),
    "decode_attention": ("kv_dtype", "head_dim", "kv_heads", "heads", "batch", "context", "latency_us"),
    "all_reduce": ("mode", "ranks", "bytes", "latency_us"),
}
TEXT_COLUMNS = ("dtype", "kv_dtype", "mode")


@dataclass(frozen=True, slots=True)
class GpuMeta:
    """What meta.toml says of the system."""

    name: str
    device: str
    memory_gib: float
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float
    peak_flops: Mapping[str, float]
    elementwise_bandwidth_share: float
    elementwise_launch_us: float
    source: str
    licence: str
    date: str


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """Meta data and the measured tables, one a kernel family, with the columns of `COLUMNS`."""

    meta: GpuMeta
    tables: Mapping[str, pa.Table]

    def select(self, family: str, **equal: str | int) -> dict[str, np.ndarray[Any, Any]]:
        """The rows of one family where every named column has the given value, as arrays by column."""
        table = self.tables[family]
        for column, value in equal.items():
            table = table.filter(pc.equal(table[column], value))
        return {name: table[name].to_numpy() for name in COLUMNS[family]}

    def values(self, family: str, column: str, **equal: str | int) -> list[Any]:
        """The distinct values of one column among those rows, sorted."""
        table = self.tables[family]
        for name, value in equal.items():
            table = table.filter(pc.equal(table[name], value))
        return sorted(table[column].unique().to_pylist())


def load_profile(name: str) -> GpuProfile:
    """The bundled profile `name`; InputError (key `cluster.gpu`) when there is none or it cannot be used."""
    known = assets.names("gpus")
    if name not in known:
        raise bad_input(
            f"unknown GPU {name!r}",
            key="cluster.gpu",
            expected=f"one of {', '.join(known)}",
            nearest=nearest_name(name, known),
        )
    return read_profile(assets.root("profiles") / "gpus" / name)


def read_profile(directory: Path) -> GpuProfile:
    """The profile in `directory`; InputError naming the file that is missing, truncated, too new or incomplete."""
    meta = _read_meta(directory / "meta.toml")
    tables = {family: _read_table(directory / f"{family}.parquet", columns) for family, columns in COLUMNS.items()}
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
            link_bytes_per_s=_positive(path, "link_bytes_per_s", table["link_bytes_per_s"]),
            peak_flops={dtype: _positive(path, dtype, value) for dtype, value in table["peak_flops"].items()},
            elementwise_bandwidth_share=_positive(path, "bandwidth_share", table["elementwise"]["bandwidth_share"]),
            elementwise_launch_us=_positive(path, "launch_us", table["elementwise"]["launch_us"]),
            source=str(table["source"]),
            licence=str(table["licence"]),
            date=str(table["date"]),
        )
    except KeyError as error:
        raise _bad(path, f"lacks {error.args[0]}") from None
    except (TypeError, AttributeError):
        raise _bad(path, "has a table where a value belongs, or the other way round") from None


def _read_table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    if not path.is_file():
        raise _bad(path, "is missing")
    try:
        table = pq.ParquetFile(path).read()  # Unlike read_table, this does not import pyarrow.dataset.
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
    latency_us = table["latency_us"].to_numpy()
    if not (np.isfinite(latency_us).all() and (latency_us > 0).all()):
        raise _bad(path, "has latencies that are not positive numbers")
    return table.select(list(columns))


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
