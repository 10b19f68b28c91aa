"""The results of a sweep as a table: for people, as CSV and as Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ttsim_des.metrics.flat import in_all
from ttsim_des.report.replicated import HEADLINES
from ttsim_des.report.rundir import write_text
from ttsim_des.report.variants import shortened

Results = Sequence[Mapping[str, Any]]
SHOWN = (
    *("query latency, mean", "query latency, p95", "achieved queries/s", "output tokens/s"),
    *("goodput, share that keeps all limits", "accuracy", "cost per query"),
)


def rows_of(results: Results) -> list[dict[str, Any]]:
    """A row a run: the varied keys (as text, empty where not said), replication, stability, all numbers by path."""
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    keys = _varied(results)
    rows = []
    for result in results:
        given = dict(text.split("=", 1) for text in result["variant"])
        varied = {key: given.get(key, "") for key in keys}
        fixed = {"replication": result["replication"], "is_stable": result["is_stable"]}
        rows.append({**varied, **fixed, **{name: result["metrics"].get(name) for name in names}})
    return rows


def _varied(results: Results) -> list[str]:
    return list(dict.fromkeys(text.split("=", 1)[0] for result in results for text in result["variant"]))


def write_tables(out: Path, results: Results) -> None:
    """Write results.csv and results.parquet into a sweep's directory, each at once."""
    rows = rows_of(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([["" if value is None else value for value in row.values()] for row in rows])
    varied = set(_varied(results))
    columns = {}
    for name in rows[0]:
        kind = {"replication": pa.int64(), "is_stable": pa.bool_()}.get(name, pa.float64())
        columns[name] = pa.array([row[name] for row in rows], pa.string() if name in varied else kind)
    write_text(out / ".results.csv", text.getvalue())
    pq.write_table(pa.table(columns), out / ".results.parquet", compression="zstd")
    for name in ("results.csv", "results.parquet"):
        (out / f".{name}").replace(out / name)


def render(results: Results) -> str:
    """A line a point: means over its replications, a dash where one of them gives no number."""
    points: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        points.setdefault(tuple(result["variant"]), []).append(result)
    columns = [label for label in SHOWN if any(_mean(runs, label) is not None for runs in points.values())]
    names = shortened(points)
    width = max(map(len, names.values()))
    heads = [label.replace("query latency, ", "latency ").split(",")[0] for label in columns]
    lines = [f"  {'':{width}}  {'runs':>4}  " + "  ".join(f"{head:>15}" for head in heads)]
    for variant, runs in points.items():
        cells = "  ".join(f"{HEADLINES[label][1](_mean(runs, label)):>15}" for label in columns)
        unstable = sum(not run["is_stable"] for run in runs)
        mark = f"  queue grows in {unstable}" if unstable else ""
        lines.append(f"  {names[variant]:{width}}  {len(runs):>4}  {cells}{mark}")
    return "\n".join(lines) + "\n"


def _mean(runs: Sequence[Mapping[str, Any]], label: str) -> float | None:
    known = in_all((run["metrics"] for run in runs), HEADLINES[label][0])
    return sum(known) / len(known) if known else None
