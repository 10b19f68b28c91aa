"""Several replications of a scenario on disk, and as a table with intervals.

scenario.toml  replications.csv  intervals.json  manifest.json
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ttsim_des.errors import bad_input
from ttsim_des.metrics.flat import Flat, flatten
from ttsim_des.report.rundir import publish, to_json, write_text
from ttsim_des.report.units import duration, number, percent, usd

SCHEMA: Final = 1
TABLE: Final = "replications.csv"
FIXED: Final = ("replication", "is_stable")
HEADLINES: Final[dict[str, tuple[str, Callable[[float | None], str]]]] = {
    "query latency, mean": ("query.latency_s.mean", duration),
    "query latency, p50": ("query.latency_s.p50", duration),
    "query latency, p90": ("query.latency_s.p90", duration),
    "query latency, p95": ("query.latency_s.p95", duration),
    "query latency, p99": ("query.latency_s.p99", duration),
    "first token (TTFT), mean": ("request.ttft_s.mean", duration),
    "first token (TTFT), p95": ("request.ttft_s.p95", duration),
    "time per output token, mean": ("request.tpot_s.mean", duration),
    "time per output token, p95": ("request.tpot_s.p95", duration),
    "achieved queries/s": ("achieved.queries_per_s", number),
    "output tokens/s": ("achieved.output_tokens_per_s", number),
    "goodput, share that keeps all limits": ("goodput.share", percent),
    "accuracy": ("accuracy.share", percent),
    "GPU busy": ("gpu.busy_share", percent),
    "mean batch": ("batch.time_mean_seqs", number),
    "preemptions per request": ("preemption.per_request", number),
    "GPU-seconds per query": ("cost.gpu_s_per_query", number),
    "cost per query": ("cost.query_usd", usd),
}
"""What is printed, by the path of the metric."""


class SavedReplications(NamedTuple):
    """What a directory says of one or several replications: numbers by replication, the scenario, the seed."""

    path: Path
    rows: dict[int, Flat]
    is_stable: bool
    scenario_toml: str
    seed: int


def write_replicated(
    out: Path,
    *,
    rows: Sequence[tuple[int, bool, Flat]],
    intervals: Mapping[str, Mapping[str, Any]],
    advice: Mapping[str, Any],
    scenario_toml: str,
    manifest: Mapping[str, Any],
) -> Path:
    """Write the directory, whole or not at all. `rows`: replication, whether it was stable, numbers by path."""
    names = list(rows[0][2])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIXED, *names])
    for replication, is_stable, metrics in rows:
        cells = ["" if (value := metrics.get(name)) is None else repr(value) for name in names]
        writer.writerow([replication, int(is_stable), *cells])

    def fill(aside: Path) -> None:
        write_text(aside / "scenario.toml", scenario_toml)
        write_text(aside / TABLE, text.getvalue())
        content = {"schema": SCHEMA, "replications": len(rows), **advice, "intervals": intervals}
        write_text(aside / "intervals.json", to_json(content))

    return publish(out, manifest, fill)


def read_replications(path: Path) -> SavedReplications:
    """The numbers of a run directory, of one replication or several; InputError for what is missing or damaged."""
    if not path.is_dir():
        raise bad_input(
            "there is no such run directory", where=str(path), expected="a directory that `run` has written"
        )
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        scenario_toml = (path / "scenario.toml").read_text(encoding="utf-8")
        if (path / TABLE).exists():
            with (path / TABLE).open(newline="", encoding="utf-8") as stream:
                read = [dict(row) for row in csv.DictReader(stream)]
            rows = {int(row.pop("replication")): row for row in read}
            stable = {row.pop("is_stable") for row in rows.values()} == {"1"}
            numbers = {
                number: {name: float(cell) if cell else None for name, cell in row.items()}
                for number, row in rows.items()
            }
            return SavedReplications(path, numbers, stable, scenario_toml, int(manifest["seed"]))
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        stable = summary["stability"]["stable"] is not False
        number = int(manifest.get("replication", 0))
        return SavedReplications(path, {number: flatten(summary)}, stable, scenario_toml, int(manifest["seed"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bad_input(
            f"this run cannot be read: {error}", where=str(path), expected="files as `run` writes"
        ) from None


def render(name: str, intervals: Mapping[str, Mapping[str, Any]], replications: int, advice: Mapping[str, Any]) -> str:
    """Means over replications with half the width of their 95 % intervals."""
    lines = [f"{name}, {replications} replications: mean and 95 % interval (Student t over replications)", ""]
    for label, (path, show) in HEADLINES.items():
        if (interval := intervals.get(path)) is None:
            continue
        half = interval["half_width"]
        lines.append(f"  {label:38} {show(interval['mean']):>12}  ± {_half(half, interval['mean'])}")
    lines += ["", *(f"  {text}" for text in _advice(advice))]
    return "\n".join(lines) + "\n"


def _half(half_width: float | None, mean: float) -> str:
    if half_width is None:
        return "unknown: one replication"
    if mean == 0:
        return number(half_width)
    return f"{100 * abs(half_width / mean):.2g} %"


def _advice(advice: Mapping[str, Any]) -> list[str]:
    lines = []
    cut, wanted = advice.get("warmup_fraction"), advice.get("mser5_fraction")
    if cut is not None and wanted is not None:
        enough = "enough" if cut >= wanted else "too little"
        lines.append(
            f"warm-up cut: {cut:.0%} of the queries; MSER-5 on the averaged series says {wanted:.0%}: {enough}"
        )
    if precision := advice.get("precision"):
        state = "reached" if precision["reached"] else "NOT reached"
        lines.append(f"precision of {precision['metric']}: {100 * precision['share']:g} % asked, {state}")
    if unstable := advice.get("unstable_replications"):
        lines.append(f"✗ the queue grew without bound in {unstable} replications: no steady state, latencies withheld")
    return lines


def finite(value: float) -> float | None:
    """None for what JSON cannot hold."""
    return value if math.isfinite(value) else None
