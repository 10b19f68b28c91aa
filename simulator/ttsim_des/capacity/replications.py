"""Independent replications of one scenario: the same questions asked of other draws, and how sure the answers are.

Replication r of seed s has random streams of its own, in all its parts; the r-th replications of two variants share
them. A quantile is taken within a replication first. Intervals are Student's t over replications, never over requests.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count as count_from

import numpy as np

from ttsim_des.api import load, run
from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.metrics.columns import column
from ttsim_des.metrics.flat import Flat, flatten, in_all
from ttsim_des.metrics.stats import FloatArray, mean_interval
from ttsim_des.records.long_table import whole
from ttsim_des.scenario.load import LoadedScenario
from ttsim_des.units import NS_PER_S

FEWEST_FOR_PRECISION = 5
"""A spread estimated from fewer replications says nothing about when to stop."""
MSER_BATCH = 5
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Replication:
    """One run: its numbers by path, and the latency of each answered query in order of arrival."""

    number: int
    metrics: Flat
    is_stable: bool
    latencies_s: FloatArray


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over replications and half the width of its 95 % interval; infinite with one replication."""

    mean: float
    half_width: float
    replications: int

    @property
    def relative(self) -> float:
        """Half width over the mean."""
        return abs(self.half_width / self.mean) if self.mean else (0.0 if self.half_width == 0 else math.inf)


@dataclass(frozen=True, slots=True)
class Precision:
    """Stop when a metric is known to within a share of itself, or after so many replications."""

    metric: str
    share: float
    most: int


def replicate(
    scenario: str,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    count: int,
    precision: Precision | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Replication]:
    """Run `count` replications side by side, or with `precision` as many more as it takes.

    The result does not depend on the number of workers. InputError where the scenario cannot be run or has no such
    metric. `progress(done)` is called after each.
    """
    load(scenario, overrides, seed)
    most = count if precision is None else max(count, precision.most)
    workers = min(os.cpu_count() or 1, most) if workers is None else workers
    found: list[Replication] = []
    for replication in _in_order(scenario, tuple(overrides), seed, most, workers):
        found.append(replication)
        if progress is not None:
            progress(len(found))
        if precision is not None and len(found) >= max(count, FEWEST_FOR_PRECISION) and _known(found, precision):
            break
    return found


def _in_order(
    scenario: str, overrides: tuple[str, ...], seed: int | None, most: int, workers: int
) -> Iterator[Replication]:
    """Replications 0, 1, 2 ...; workers are never further ahead than their number."""
    if workers == 1:
        for number in range(most):
            yield one_replication(scenario, overrides, seed, number)
        return
    with ProcessPoolExecutor(workers) as pool:
        numbers = count_from()
        waiting: list[Future[Replication]] = []
        try:
            for _ in range(most):
                while len(waiting) < workers and (number := next(numbers)) < most:
                    waiting.append(pool.submit(one_replication, scenario, overrides, seed, number))
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def one_replication(scenario: str, overrides: tuple[str, ...], seed: int | None, number: int) -> Replication:
    """Run one replication of a scenario."""
    return replication_of(load(scenario, overrides, seed), number)


def replication_of(loaded: LoadedScenario, number: int) -> Replication:
    """Run one replication of a scenario that is loaded already."""
    result = run(loaded, replication=number)
    queries = whole(result.tables.queries)
    arrival_ns, finish_ns = (column(queries, name) for name in ("arrival_ns", "finish_ns"))
    order = np.argsort(arrival_ns, kind="stable")
    answered = order[finish_ns[order] >= 0]
    latencies_s = (finish_ns[answered] - arrival_ns[answered]) / NS_PER_S
    numbers = flatten({name: part for name, part in result.summary.items() if name not in ("schema", "run")})
    return Replication(number, numbers, result.summary["stability"]["stable"] is not False, latencies_s)


def _known(found: Sequence[Replication], precision: Precision) -> bool:
    if precision.metric not in found[0].metrics:
        raise bad_input(
            f"there is no metric {precision.metric!r}",
            key="--precision",
            expected="a number of summary.json by its path, such as query.latency_s.mean",
            nearest=nearest_name(precision.metric, found[0].metrics),
        )
    interval = intervals(found).get(precision.metric)
    return interval is not None and interval.relative <= precision.share


def intervals(replications: Sequence[Replication]) -> dict[str, Interval]:
    """The interval of every metric that all replications give."""
    found = {}
    for name in replications[0].metrics:
        known = in_all((replication.metrics for replication in replications), name)
        if known is not None:
            mean, half_width = mean_interval(known)
            found[name] = Interval(mean, half_width, len(known))
    return found


def mser5(series: FloatArray) -> int:
    """How many observations to cut at the start by MSER-5 (White 1997): multiples of 5, at most half.

    The cut that makes the marginal standard error of the mean of what remains smallest.
    """
    batches = series[: len(series) // MSER_BATCH * MSER_BATCH].reshape(-1, MSER_BATCH).mean(axis=1)
    if len(batches) < 2:
        return 0
    remaining = np.arange(len(batches), 0, -1, dtype=np.float64)
    sums = np.cumsum(batches[::-1])[::-1]
    squares = np.cumsum((batches**2)[::-1])[::-1]
    errors = (squares - sums**2 / remaining) / remaining**2
    return int(np.argmin(errors[: len(batches) // 2 + 1])) * MSER_BATCH


def warmup_advice(replications: Sequence[Replication]) -> float | None:
    """The share of queries that MSER-5 would cut from the latencies averaged over replications; None for too few."""
    shortest = min(len(replication.latencies_s) for replication in replications)
    if shortest < 2 * MSER_BATCH:
        return None
    averaged = np.mean([replication.latencies_s[:shortest] for replication in replications], axis=0)
    return mser5(averaged) / shortest
