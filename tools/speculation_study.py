"""The study of docs/studies/speculation.md: what speculative decoding gains at which batch, against published points.

    python tools/studies.py speculation [--write]

Fitted are the engine's host time (per step, per sequence) on the points without speculation, and for each data set and
method one acceptance rate on its point at batch 1. Everything at batches of 16, 64 and 128 is predicted.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from ttsim_des import load
from ttsim_des.api import run_context
from ttsim_des.deployment import deploy
from ttsim_des.latency.calibration import Calibration
from ttsim_des.metrics.summary import summarise
from ttsim_des.report.figures import save, set_up
from ttsim_des.rng import Streams
from ttsim_des.simulation.run import simulate
from ttsim_des.workload.queries import QuerySource

DOCS = Path(__file__).parents[1] / "docs" / "studies"
BATCHES = (1, 16, 64, 128)
SURE = 0.05
"""A speed-up further than this from 1 must be predicted on the right side of it."""
LENGTHS = {
    ("Qwen3-8B", "GSM8K"): (150, 1500),
    ("Qwen3-8B", "CNN/DM"): (1000, 800),
    ("Qwen3-8B", "InstructCoder"): (350, 1500),
    ("Qwen3-8B", "ShareGPT"): (250, 1000),
    ("Llama-3.1-8B", "GSM8K"): (150, 200),
    ("Llama-3.1-8B", "CNN/DM"): (1000, 150),
    ("Llama-3.1-8B", "InstructCoder"): (350, 300),
    ("Llama-3.1-8B", "ShareGPT"): (250, 250),
    ("Llama-3.1-70B", "GSM8K"): (150, 200),
    ("Llama-3.1-70B", "InstructCoder"): (350, 300),
    ("Llama-3.1-70B", "ShareGPT"): (250, 250),
}
"""Mean tokens of prompt and output. Not published: assumed from the data sets, before any comparison."""
METHODS = {
    "ngram": ['method="ngram"'],
    "eagle": ['method="eagle"'],
    "eagle3": ['method="eagle3"', "draft_vocab=32000"],
    "draft_model": ['method="draft_model"', 'model="Qwen3-0.6B"'],
}
TP = {"Llama-3.1-70B": 4}
STAY = 0.8
"""n-gram: how likely a draft behind a match is right; measured 0.6 to 0.95 (docs/speculation.md). How often there is a
match is fitted."""


class Point(NamedTuple):
    """A published number: throughput in tokens per second, or the speed-up over no speculation."""

    model: str
    dataset: str
    method: str
    batch: int
    metric: str
    value: float


class Job(NamedTuple):
    """One simulation: tokens per second of a closed loop of `batch` requests."""

    model: str
    dataset: str
    method: str
    batch: int
    rate: float
    step_us: float
    sequence_us: float


def published() -> list[Point]:
    """The points of the study, from its file."""
    lines = (DOCS / "speculation-published.csv").read_text(encoding="utf-8").splitlines()
    return [
        Point(row["model"], row["dataset"], row["method"], int(row["batch"]), row["metric"], float(row["value"]))
        for row in csv.DictReader(lines[1:])
    ]


def tokens_per_s(job: Job) -> float:
    """Output tokens per second of a job."""
    prompt, output = LENGTHS[job.model, job.dataset]
    queries = max(12, 4 * job.batch)
    overrides = [
        f'cluster.model="{job.model}"',
        f"workload.arrivals.concurrency={job.batch}",
        f"experiment.queries={queries}",
        f"workload.prompt.tokens={prompt}",
        f"workload.output.mean={output}",
        "engine.speculative=",
        f"cluster.tp={TP.get(job.model, 1)}",
    ]
    if job.method != "none":
        asked = [*METHODS[job.method], "num_speculative_tokens=3"]
        if job.method == "ngram":
            asked += ['acceptance.process="copying"', f"acceptance.offer={job.rate}"]
            asked += [f"acceptance.enter={STAY}", f"acceptance.stay={STAY}"]
        else:
            asked += ['acceptance.process="iid"', f"acceptance.rate={job.rate}"]
        overrides += [f"engine.speculative.{each}" for each in asked]
    loaded = load("speculation", overrides)
    scenario = loaded.scenario
    deployed = deploy(scenario, loaded.base_dir, Calibration(step_us=job.step_us, sequence_us=job.sequence_us))
    source = QuerySource(scenario.workload, Streams(scenario.seed), loaded.base_dir, queries=queries)
    tables = simulate(scenario, deployed, source, None).tables
    summary = summarise(tables, run_context(scenario, deployed, None))
    return float(summary["achieved"]["output_tokens_per_s"])


def fit_host(points: Sequence[Point], pool: ProcessPoolExecutor) -> tuple[float, float]:
    """Host microseconds per step and per sequence that meet the points without speculation best."""
    bare = np.array(list(pool.map(tokens_per_s, [_plain(point, 0.0, 0.0) for point in points])))
    batch, wanted = (np.array([getattr(point, name) for point in points]) for name in ("batch", "value"))
    per_token_us = 1e6 / bare  # of the whole engine; a step of all sequences takes batch times as long

    def errors(host: Any) -> Any:
        return (1e6 / (per_token_us + host[0] / batch + host[1])) / wanted - 1

    found = optimize.least_squares(errors, [1000.0, 10.0], bounds=([0, 0], [5000, 200]))
    return float(found.x[0]), float(found.x[1])


def fit_rates(
    points: Iterable[Point],
    host: tuple[float, float],
    plain: dict[tuple[str, str, int], float],
    pool: ProcessPoolExecutor,
) -> dict[tuple[str, str, str], float]:
    """For each model, data set and method the acceptance rate that meets its point at batch 1, by bisection."""
    wanted = {}
    for point in points:
        if point.batch == 1 and point.method != "none":
            base = plain[point.model, point.dataset, 1] if point.metric == "speedup_token_throughput" else 1.0
            wanted[point.model, point.dataset, point.method] = point.value * base
    low, high = dict.fromkeys(wanted, 0.001), dict.fromkeys(wanted, 0.999)
    for _ in range(9):
        middle = {key: (low[key] + high[key]) / 2 for key in wanted}
        jobs = [Job(*key, 1, middle[key], *host) for key in wanted]
        for key, speed in zip(wanted, pool.map(tokens_per_s, jobs), strict=True):
            (low if speed < wanted[key] else high)[key] = middle[key]
    return {key: (low[key] + high[key]) / 2 for key in wanted}


def _plain(point: Point, step_us: float, sequence_us: float) -> Job:
    return Job(point.model, point.dataset, "none", point.batch, 0.0, step_us, sequence_us)


def speculation(out: Path | None) -> dict[str, str]:
    """Fit, predict, compare."""
    points = published()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        free = [point for point in points if point.method == "none"]
        host = fit_host(free, pool)
        places = sorted({(point.model, point.dataset) for point in points})
        jobs = [Job(*place, "none", batch, 0.0, *host) for place in places for batch in BATCHES]
        plain = {(*job[:2], job.batch): speed for job, speed in zip(jobs, pool.map(tokens_per_s, jobs), strict=True)}
        rates = fit_rates(points, host, plain, pool)
        asked = [point for point in points if point.method != "none"]
        drafted = [Job(*point[:4], rates[point[:3]], *host) for point in asked]
        speeds = dict(zip([point[:4] for point in asked], pool.map(tokens_per_s, drafted), strict=True))
    rows, errors, sides = _compare(points, plain, speeds)
    if out is not None:
        set_up()
        save(out / "speculation.png", lambda: _figure(points, plain, speeds))
    fitted = [[model, dataset, method, f"{rate:.3f}"] for (model, dataset, method), rate in sorted(rates.items())]
    return {
        "host": f"Fitted on the points without speculation: {host[0]:.0f} us a step, {host[1]:.1f} us a sequence.",
        "errors": _table(["predicted", "points", "median error", "largest", "must"], errors),
        "sides": _table(["speed-ups further than 5 % from 1", "points", "right side"], sides),
        "rates": _table(["model", "data set", "method", "fitted on batch 1"], fitted),
        "points": _table(["model", "data set", "method", "batch", "published", "simulated", "error"], rows),
    }


def _compare(
    points: Sequence[Point], plain: dict[tuple[str, str, int], float], speeds: dict[tuple[str, str, str, int], float]
) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    rows, errors, sides = [], defaultdict(list), defaultdict(list)
    base = {(point.model, point.dataset, point.batch): point.value for point in points if point.method == "none"}
    for point in points:
        place = (point.model, point.dataset, point.batch)
        is_throughput = point.metric == "output_throughput"
        if point.method == "none":
            ours, kind = plain[place], "throughput without speculation (fitted)"
        elif is_throughput:
            ours, kind = speeds[point[:4]], "throughput with speculation, Qwen3-8B"
        else:
            ours = speeds[point[:4]] / plain[place]
            draft = "draft model, Qwen3-8B" if point.method == "draft_model" else "heads and n-gram, Llama-3.1-8B"
            kind = f"speed-up, {draft}" if point.model in draft else f"speed-up, heads and n-gram, {point.model}"
        error = ours / point.value - 1
        fitted = "" if point.method == "none" or point.batch > 1 else " (fitted)"
        digits = 0 if is_throughput else 2
        rows.append(
            [
                *point[:3],
                str(point.batch),
                f"{point.value:,.{digits}f}",
                f"{ours:,.{digits}f}",
                f"{100 * error:+.1f} %{fitted}",
            ]
        )
        if point.method == "none" or point.batch > 1:
            errors[kind].append(abs(error))
        if point.method != "none" and point.batch > 1:
            theirs = point.value / base[place] if is_throughput else point.value
            mine = speeds[point[:4]] / plain[place]
            if abs(theirs - 1) > SURE:
                sides[point.model].append((mine > 1) == (theirs > 1))
    must = {"throughput without speculation (fitted)": "5 %", "throughput with speculation, Qwen3-8B": "10 %"}
    table = [
        [kind, str(len(each)), f"{100 * median(each):.1f} %", f"{100 * max(each):.1f} %", must.get(kind, "15 %")]
        for kind, each in errors.items()
    ]
    return rows, table, [[model, str(len(each)), str(sum(each))] for model, each in sides.items()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _figure(
    points: Sequence[Point], plain: dict[tuple[str, str, int], float], speeds: dict[tuple[str, str, str, int], float]
) -> Any:
    import matplotlib.pyplot as plt

    datasets = ("GSM8K", "CNN/DM", "InstructCoder")
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
    theirs = {point[:4]: point.value for point in points}
    for panel, dataset in zip(panels, datasets, strict=True):
        for index, method in enumerate(("eagle3", "ngram")):
            ours = [speeds["Qwen3-8B", dataset, method, batch] / plain["Qwen3-8B", dataset, batch] for batch in BATCHES]
            told = [
                theirs["Qwen3-8B", dataset, method, batch] / theirs["Qwen3-8B", dataset, "none", batch]
                for batch in BATCHES
            ]
            panel.plot(BATCHES, told, "o", color=f"C{index}", label=f"{method}, published")
            panel.plot(BATCHES, ours, "-", color=f"C{index}", label=f"{method}, simulated")
        panel.axhline(1, color="grey", linewidth=1)
        panel.set(xscale="log", xlabel="requests in flight", title=dataset)
        panel.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    panels[0].set(ylabel="speed-up over no speculation")
    panels[0].legend()
    return figure
