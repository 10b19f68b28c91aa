"""The Pareto front: configurations than which no other is at once no slower, no dearer and no less accurate.

`ttsim-des frontier` is a view of it: every variant once, with marks for its two edges (accuracy and waiting, accuracy
and cost).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ttsim_des.api import load
from ttsim_des.capacity.candidate import ACCURACY, GPU_SECONDS, USD, Candidate
from ttsim_des.capacity.grid import Variant
from ttsim_des.capacity.plan import surveyed
from ttsim_des.capacity.question import Question
from ttsim_des.capacity.race import race
from ttsim_des.deployment import deploy

P95 = "query.latency_s.p95"


@dataclass(frozen=True, slots=True)
class Point:
    """One variant's means over replications; None where a number cannot be given.

    `waits_longer` and `costs_more`: another variant is at least as accurate and faster at p95, or cheaper. `on_front`:
    no other is at least as good in accuracy, p95 and cost, and better in one.
    """

    variant: Variant
    accuracy: float | None
    latency_mean_s: float | None
    latency_p95_s: float | None
    query_usd: float | None
    solved_query_usd: float | None
    gpu_s_per_query: float | None
    output_tokens: float | None
    stable: bool
    waits_longer: bool = False
    costs_more: bool = False
    on_front: bool = False


@dataclass(frozen=True, slots=True)
class Front:
    """All candidates in the order given, and the points of those that were simulated and keep the SLOs."""

    candidates: list[Candidate]
    points: list[Point]


def front(question: Question, candidates: list[Candidate], *, prune: bool = True) -> Front:
    """Simulate all surveyed candidates but those that, by what is known without simulating, another one dominates.

    With SLOs only candidates that surely keep them count.
    """
    cost = USD if all(USD in {**one.exact, **one.bounds} for one in candidates if one.gpus) else GPU_SECONDS
    kept: list[Candidate] = []

    def beaten_by(candidate: Candidate) -> str:
        better = next((one for one in kept if _surely_dominates(one, candidate, cost)), None)
        return "" if better is None else f"cannot be better than {better.label}"

    def arrive(candidate: Candidate) -> None:
        if candidate.is_stable and (not question.slos or candidate.state == "holds"):
            kept.append(candidate)

    waiting = [candidate for candidate in candidates if not candidate.why_not]
    waiting.sort(key=lambda candidate: (candidate.at_least(cost) or 0.0, candidate.at_least(P95) or 0.0))
    race(question, waiting, beaten_by, arrive, prune=prune)
    shown = [one for one in candidates if one.runs and (not question.slos or one.state == "holds")]
    return Front(candidates, marked([point_of(one) for one in shown]))


def frontier(question: Question, variants: Sequence[Variant]) -> list[Point]:
    """All variants, each simulated and marked; InputError where one of them cannot be run, before any is."""
    candidates = surveyed(question, variants, GPU_SECONDS, prune=False)
    for candidate in candidates:
        if not candidate.gpus:
            loaded = load(question.scenario, [*question.overrides, *candidate.variant], question.seed)
            deploy(loaded.scenario, loaded.base_dir)  # Says all that is wrong with it.
    return front(question, candidates, prune=False).points


def point_of(candidate: Candidate) -> Point:
    """A candidate's means, without marks."""
    return Point(
        candidate.variant,
        candidate.value(ACCURACY),
        candidate.value("query.latency_s.mean"),
        candidate.value(P95),
        candidate.value(USD),
        candidate.value("cost.solved_query_usd"),
        candidate.value(GPU_SECONDS),
        candidate.value("query.output_tokens.mean"),
        candidate.is_stable,
    )


def _surely_dominates(one: Candidate, other: Candidate, cost: str) -> bool:
    """Whether a candidate that was simulated is no worse in anything than the other can be at its best.

    Where accuracies are known, the other's must be known without simulating too.
    """
    for metric in (cost, P95):
        mine, least = one.value(metric), other.at_least(metric)
        if mine is None or least is None or mine > least:
            return False
    mine, theirs = one.value(ACCURACY), other.at_least(ACCURACY)
    return mine is None or (theirs is not None and mine >= theirs)


def marked(points: Sequence[Point]) -> list[Point]:
    """The points with marks of what others dominate; accuracy does not count where nobody knows it."""
    cost = "query_usd" if all(point.query_usd is not None for point in points) else "gpu_s_per_query"
    return [
        replace(
            point,
            waits_longer=any(_dominates(other, point, ("latency_p95_s",)) for other in points),
            costs_more=any(_dominates(other, point, (cost,)) for other in points),
            on_front=point.stable
            and getattr(point, cost) is not None
            and point.latency_p95_s is not None
            and not any(_dominates(other, point, ("latency_p95_s", cost), needs_accuracy=False) for other in points),
        )
        for point in points
    ]


def _dominates(one: Point, other: Point, names: Sequence[str], *, needs_accuracy: bool = True) -> bool:
    """Whether `one` is as good in accuracy and all of `names` (the smaller the better), and better somewhere."""
    mine = [getattr(one, name) for name in names]
    theirs = [getattr(other, name) for name in names]
    if one.accuracy is not None and other.accuracy is not None:
        mine.append(-one.accuracy)
        theirs.append(-other.accuracy)
    elif needs_accuracy or one.accuracy is not other.accuracy:
        return False
    if None in mine or None in theirs or not one.stable:
        return False
    return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def as_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Plain data, for JSON."""
    return [asdict(point) | {"variant": list(point.variant)} for point in points]
