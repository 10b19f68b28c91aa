"""Profile directories on disk (docs/profiles.md): tables and meta.toml, each file at once or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = 1
Row = Mapping[str, int | str | float]
"""One measurement: its axes in the order of the table's columns, then latency_us."""


def write_tables(out: Path, families: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Write `<family>.parquet` of each family with rows, sorted, and remove those without.

    Returns the measured range of each whole-number axis, as TOML, by `<family>_<axis>`.
    """
    spans: dict[str, str] = {}
    for family, rows in families.items():
        path = out / f"{family}.parquet"
        if not rows:
            path.unlink(missing_ok=True)
            continue
        names = list(rows[0])
        write_table(path, sorted(rows, key=lambda row: [row[name] for name in names]))
        for name in names[:-1]:
            if isinstance(rows[0][name], int):
                values = [int(row[name]) for row in rows]
                spans[f"{family}_{name}"] = f"[{min(values)}, {max(values)}]"
    return spans


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """One family's table, small on disk: zstd, integers of 32 bits (bytes: 64), latencies of 32-bit floats."""
    types = {"bytes": pa.int64(), "latency_us": pa.float32()}
    columns = {
        name: pa.array(
            [row[name] for row in rows], pa.string() if isinstance(value, str) else types.get(name, pa.int32())
        )
        for name, value in rows[0].items()
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", compression_level=19)
    replace_file(path, sink.getvalue().to_pybytes())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what was there."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def best_line(values: Sequence[tuple[float, float]]) -> tuple[float, float, tuple[float, float]]:
    """Intercept and slope (both above 0) of the best line by relative error, and its median and largest error."""
    x, y = (np.array(column) for column in zip(*values, strict=True))
    weighted = np.stack((1 / y, x / y), axis=1)
    start, slope = np.linalg.lstsq(weighted, np.ones_like(y), rcond=None)[0].tolist()
    if start <= 0:
        start, slope = float(y.min()) * 0.5, float(np.median((y - 0.5 * y.min()) / x))
    if slope <= 0:
        start, slope = float(np.median(y)), 1e-12
    errors = np.abs((start + slope * x) / y - 1)
    return start, slope, (float(np.median(errors)), float(errors.max()))
