"""The study of scenarios/plan-math500.toml: the choice, what each model and number of samples would cost, the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttsim_des import load
from ttsim_des.capacity.candidate import ACCURACY, GPU_SECONDS, USD, Candidate
from ttsim_des.capacity.executors import LocalExecutor
from ttsim_des.capacity.front import P95, Point, front
from ttsim_des.capacity.grid import points_and_grid, points_of
from ttsim_des.capacity.plan import Choice, choose, surveyed
from ttsim_des.capacity.question import Question
from ttsim_des.capacity.slo import parse_slos
from ttsim_des.report.figures import log_scale, save, set_up
from ttsim_des.report.plan_view import kind_of

SCENARIO = "plan-math500"
SAMPLES = ("1", "2", "4")
RUNS = Path("runs") / "plan-math500-study"
"""Runs stay here: a study that is made again, or interrupted, goes on with them."""
Row = tuple[str, ...]
HEAD = ("model", "N", "GPU", "tp", "replicas", "USD a query", "p95 s", "right")


def plan_math500(out: Path | None) -> dict[str, tuple[Row, list[Row]]]:
    """Tables by name, each with its head; with `out` also the plot."""
    plan = load(SCENARIO).scenario.plan
    points, vary = points_of(plan.points or []), plan.vary or []
    with LocalExecutor() as executor:
        slos = parse_slos(plan.slos or [])
        question = Question(SCENARIO, (), None, slos, plan.replications or 5, RUNS, executor)
        choice = choose(question, points_and_grid(vary, points))
        waits = replace(question, slos=[slo for slo in slos if slo.metric == P95])
        others = [text for text in vary if not text.startswith("workload.strategy.samples")]
        cheapest: list[tuple[str, str, Candidate | None]] = []
        for point in points:
            for samples in SAMPLES[:1] if "EAGLE" in _model(point) else SAMPLES:
                variants = points_and_grid([f"workload.strategy.samples={samples}", *others], [point])
                cheapest.append((_model(point), samples, choose(waits, variants).best))
        best = choice.best
        assert best is not None
        chosen = tuple(text for text in best.variant if not text.startswith("cluster.") or "model" in text)
        candidates = surveyed(question, points_and_grid(others, [chosen]), GPU_SECONDS, prune=True)
        found = front(replace(question, slos=()), candidates).points
    if out is not None:
        set_up()
        save(out / f"{SCENARIO}.png", lambda: _figure(cheapest, found))
    rows = [_row(model, samples, candidate) for model, samples, candidate in cheapest]
    on_front = [_front_row(point) for point in sorted(found, key=lambda one: one.query_usd or 0.0) if point.on_front]
    return {
        "what was tried": (("candidates", "", "why"), _reasons(choice)),
        "the cheapest of each": (HEAD, rows),
        "the front": (("GPU", "tp", "replicas", "USD a query", "p95 s", "mean s"), on_front),
    }


def _reasons(choice: Choice) -> list[Row]:
    simulated = [candidate for candidate in choice.candidates if candidate.runs and not candidate.twin]
    rows: list[Row] = [(f"{len(simulated)}", "simulated", "")]
    reasons: dict[str, int] = {}
    for candidate in choice.candidates:
        if not candidate.runs:
            kind = kind_of(candidate.why_not)
            reasons[kind] = reasons.get(kind, 0) + 1
    rows += [(str(count), "not", reason) for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    return rows


def _model(point: Sequence[str]) -> str:
    values = dict(text.split("=", 1) for text in point)
    drafts = " with EAGLE-3" if "engine.speculative.method" in values else ""
    return values["cluster.model"].replace("DeepSeek-R1-Distill-", "R1-") + drafts


def _row(model: str, samples: str, candidate: Candidate | None) -> Row:
    if candidate is None:
        return (model, samples, "none of these", "-", "-", "-", "-", "-")
    value = {name: candidate.value(name) or 0.0 for name in (USD, P95, ACCURACY)}
    numbers = (f"{value[USD]:.6f}", f"{value[P95]:.1f}", f"{100 * value[ACCURACY]:.1f}%")
    return (model, samples, *_cluster(candidate.variant), *numbers)


def _front_row(point: Point) -> Row:
    numbers = (f"{point.query_usd or 0:.6f}", f"{point.latency_p95_s or 0:.1f}", f"{point.latency_mean_s or 0:.1f}")
    return (*_cluster(point.variant), *numbers)


def _cluster(variant: Sequence[str]) -> Row:
    values = dict(text.split("=", 1) for text in variant)
    return tuple(values[f"cluster.{key}"] for key in ("gpu", "tp", "replicas"))


def _figure(cheapest: Sequence[tuple[str, str, Candidate | None]], points: Sequence[Point]) -> Any:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained")
    for model in dict.fromkeys(model for model, _, one in cheapest if one is not None):
        own = [(samples, one) for name, samples, one in cheapest if name == model and one is not None]
        costs = [1000 * (one.value(USD) or 0.0) for _, one in own]
        shares = [100 * (one.value(ACCURACY) or 0.0) for _, one in own]
        left.plot(costs, shares, "o-", label=model)
        for (samples, _), x, y in zip(own, costs, shares, strict=True):
            left.annotate(f"N={samples}", (x, y), xytext=(5, -10), textcoords="offset points", size=8)
    left.axhline(90, color="0.5", linestyle="--", linewidth=1)
    left.set(xlabel="USD for 1,000 questions, the cheapest with p95 < 60 s", ylabel="answers right, %")
    log_scale(left)
    left.legend()
    for gpu in dict.fromkeys(_cluster(point.variant)[0] for point in points):
        own_points = [
            point for point in points if _cluster(point.variant)[0] == gpu and point.latency_p95_s is not None
        ]
        for point in own_points:
            _, tp, replicas = _cluster(point.variant)
            place = (1000 * (point.query_usd or 0.0), point.latency_p95_s or 0.0)
            right.annotate(f"{replicas} x tp {tp}", place, xytext=(5, 4), textcoords="offset points", size=7)
        xs = [1000 * (point.query_usd or 0.0) for point in own_points]
        right.scatter(xs, [point.latency_p95_s for point in own_points], label=gpu, s=40)
    front_points = sorted((point.query_usd or 0.0, point.latency_p95_s or 0.0) for point in points if point.on_front)
    right.plot([1000 * x for x, _ in front_points], [y for _, y in front_points], color="0.5", drawstyle="steps-post")
    right.axhline(60, color="0.5", linestyle="--", linewidth=1)
    right.set(xlabel="USD for 1,000 questions", ylabel="query latency, p95, s")
    log_scale(right, y=True)
    right.set_title("the chosen model and N")
    right.legend()
    return figure
