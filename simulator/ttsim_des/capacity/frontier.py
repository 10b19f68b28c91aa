"""Accuracy against waiting and against cost, over a grid of variants of one scenario."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

from ttsim_des.api import load, run
from ttsim_des.errors import bad_input

Variant = tuple[str, ...]
"""Overrides, `key=value` each."""
MOST_VARIANTS = 10_000


@dataclass(frozen=True, slots=True)
class Point:
    """One variant's run; None where a number cannot be given.

    `waits_longer` and `costs_more`: another variant is at least as accurate and faster at p95, or cheaper.
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


def grid(vary: Sequence[str]) -> list[Variant]:
    """All combinations of `key=a,b,c`; InputError for what is not of that form."""
    axes: list[list[str]] = []
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not key or not all(values.split(",")):
            raise bad_input(f"{text!r} varies nothing", key="--vary", expected="KEY=a,b,c")
        axes.append([f"{key}={value}" for value in values.split(",")])
    variants = list(product(*axes))
    if len(variants) > MOST_VARIANTS:
        raise bad_input(f"{len(variants):,} variants", key="--vary", expected=f"at most {MOST_VARIANTS:,}")
    return variants


def frontier(scenario: str, vary: Sequence[str], overrides: Sequence[str] = (), seed: int | None = None) -> list[Point]:
    """Run every variant, side by side where the machine has several cores, and mark those that others dominate.

    All variants see the same draws. InputError where one of them cannot be run, before any is.
    """
    variants = grid(vary)
    for variant in variants:
        load(scenario, [*overrides, *variant], seed)
    one = partial(_point, scenario, tuple(overrides), seed)
    workers = min(os.cpu_count() or 1, len(variants))
    if workers == 1:
        return marked([one(variant) for variant in variants])
    with ProcessPoolExecutor(workers) as pool:
        return marked(list(pool.map(one, variants)))


def _point(scenario: str, overrides: tuple[str, ...], seed: int | None, variant: Variant) -> Point:
    summary = run(load(scenario, [*overrides, *variant], seed)).summary
    latency, cost = summary["query"]["latency_s"], summary["cost"]
    return Point(
        variant,
        summary["accuracy"]["share"],
        latency["mean"],
        latency["p95"],
        cost["query_usd"],
        cost["solved_query_usd"],
        cost["gpu_s_per_query"],
        summary["query"]["output_tokens"]["mean"],
        summary["stability"]["stable"] is not False,
    )


def marked(points: Sequence[Point]) -> list[Point]:
    """The points with marks where another is no less accurate and faster, or cheaper (or more accurate at the same)."""
    return [
        Point(
            **{
                **asdict(point),
                "waits_longer": any(_dominates(other, point, "latency_p95_s") for other in points),
                "costs_more": any(_dominates(other, point, _cost_name(points)) for other in points),
            }
        )
        for point in points
    ]


def _cost_name(points: Sequence[Point]) -> str:
    """Dollars where all prices are known, else GPU-seconds."""
    return "query_usd" if all(point.query_usd is not None for point in points) else "gpu_s_per_query"


def _dominates(one: Point, other: Point, name: str) -> bool:
    mine, theirs = getattr(one, name), getattr(other, name)
    if one.accuracy is None or other.accuracy is None or mine is None or theirs is None or not one.stable:
        return False
    if one.accuracy < other.accuracy or mine > theirs:
        return False
    return one.accuracy > other.accuracy or mine < theirs


def as_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Plain data, for JSON."""
    return [asdict(point) | {"variant": list(point.variant)} for point in points]
