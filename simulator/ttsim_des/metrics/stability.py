"""Does the number of queries in the system keep growing?

A queue that grows has no steady state: its latencies only say how long the run was. A run is called unstable when
three things hold of the number of queries in the system, seen by the arrivals in the window:
1. its means over ten batches of equal size rise: the slope's t statistic (8 degrees of freedom) has p < 0.001;
2. the growth is material: the fitted rise over the window exceeds 5 % of the arrivals (fewer than 95 % of the
   offered queries were answered in time), 25 % of the mean number in the system, and 1.4 times the square root of the
   arrivals (what their randomness alone piles up at times);
3. it goes on: the last quarter's mean exceeds the third quarter's by 12 % (a system that was still filling when the
   warm-up ended levels off).
Batch means of a busy but stable queue are correlated, so condition 1 alone raises false alarms; 2 and 3 stop most of
them. tests/metrics/test_stability.py measures both rates on M/M/1 queues.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.stats import IntArray, slope_t, student_t_quantile
from ttsim_des.metrics.window import Window
from ttsim_des.records.tables import Tables

BATCHES: Final = 10
FEWEST_ARRIVALS: Final = 50
P_VALUE: Final = 1e-3
LEAST_T: Final = 4.4  # below t(1 - P_VALUE) with 8 degrees of freedom: saves an import where nothing is wrong
GROWTH_OF_ARRIVALS: Final = 0.05
GROWTH_OF_MEAN: Final = 0.25
NOISE: Final = 1.4
LATE_GROWTH: Final = 1.12


def number_in_system(arrival_ns: IntArray, finish_ns: IntArray) -> IntArray:
    """Queries in the system that each query finds when it arrives.

    Both sorted by arrival; a finish of -1 is still open at the end. One that ends at the same instant is gone.
    """
    ended = np.sort(finish_ns[finish_ns >= 0])
    return np.arange(arrival_ns.size) - np.searchsorted(ended, arrival_ns, side="right")


def judge(in_system: IntArray) -> dict[str, Any]:
    """`stable` (None: too few arrivals to tell) and the growth per arrival behind it."""
    count = in_system.size
    if count < FEWEST_ARRIVALS:
        return {"stable": None, "growth_queries_per_arrival": None}
    per_batch = count // BATCHES
    batches = in_system[count - per_batch * BATCHES :].reshape(BATCHES, per_batch).mean(axis=1)
    slope, t = slope_t(batches)
    per_arrival = slope / per_batch
    mean = float(in_system.mean())
    quarter = count // 4
    third, last = in_system[-2 * quarter : -quarter].mean(), in_system[-quarter:].mean()
    grows = (
        t > LEAST_T
        and per_arrival > GROWTH_OF_ARRIVALS
        and per_arrival * count > max(GROWTH_OF_MEAN * mean, NOISE * math.sqrt(count))
        and last > LATE_GROWTH * third
        and t > student_t_quantile(1 - P_VALUE, BATCHES - 2)
    )
    return {"stable": not grows, "growth_queries_per_arrival": per_arrival}


def stability(tables: Tables, window: Window, context: RunContext) -> dict[str, Any]:
    """The verdict for a run; `stable` is None where the question does not arise (terminating, closed loop)."""
    if context.kind != "steady" or context.arrivals == "closed_loop":
        return {"stable": None, "growth_queries_per_arrival": None}
    entered = ~is_in(tables.queries, "status", "refused")
    arrival = column(tables.queries, "arrival_ns")[entered]
    order = np.argsort(arrival, kind="stable")
    found = number_in_system(arrival[order], column(tables.queries, "finish_ns")[entered][order])
    return judge(found[window.queries[entered][order]])
