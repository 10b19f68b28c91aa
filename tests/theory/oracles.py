"""What queueing theory says, computed without the simulator.

Sources: L. Kleinrock, Queueing Systems I (1975), sections 3.5 (M/M/c), 5.6 (M/G/1); Kleinrock II (1976), 4.4 (processor
sharing); order statistics from H. A. David, Order Statistics. Times are in any one unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special, stats


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits in M/M/c; `offered` = arrival rate x mean service, below `servers`."""
    last = offered**servers / math.factorial(servers) / (1 - offered / servers)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


def mmc_wait(rate: float, service: float, servers: int) -> float:
    """Mean waiting time in M/M/c."""
    return erlang_c(servers, rate * service) * service / (servers - rate * service)


def mg1_wait(rate: float, service: float, service_squared: float) -> float:
    """Mean waiting time in M/G/1 (Pollaczek-Khinchine), from the first two moments of the service time."""
    return rate * service_squared / (2 * (1 - rate * service))


def ps_slowdown(load: float) -> float:
    """Mean sojourn / size in M/G/1 processor sharing, whatever the size and its distribution."""
    return 1 / (1 - load)


def single_server_finishes(arrivals: Sequence[int], services: Sequence[int]) -> list[int]:
    """Departures from one first-come-first-served server (Lindley), exact for integers."""
    finishes, free = [], 0
    for arrival, service in zip(arrivals, services, strict=True):
        free = max(arrival, free) + service
        finishes.append(free)
    return finishes


def expected_extreme(values: Sequence[int], draws: int, *, largest: bool) -> float:
    """E[max] or E[min] of independent draws from equally likely values, summed exactly."""
    ordered = np.sort(np.asarray(values, dtype=float))
    edges = np.arange(len(ordered) + 1) / len(ordered)
    cumulative = edges**draws if largest else 1 - (1 - edges) ** draws
    return float(ordered @ np.diff(cumulative))


def expected_extreme_of_distinct(values: Sequence[int], draws: int, *, largest: bool) -> float:
    """E[max] or E[min] of draws without replacement, by counting the subsets."""
    ordered = sorted(values, reverse=not largest)
    subsets = math.comb(len(ordered), draws)
    return sum(value * math.comb(k, draws - 1) for k, value in enumerate(ordered)) / subsets


def geometric_quantiles(mean: float, count: int) -> list[int]:
    """`count` equally likely values that stand for a geometric distribution on 1, 2, ... with this mean."""
    middles = (np.arange(count) + 0.5) / count
    return np.ceil(np.log1p(-middles) / math.log1p(-1 / mean)).astype(int).tolist()


def interval(values: Sequence[float], confidence: float = 0.99) -> tuple[float, float]:
    """Student t interval for the mean of independent replications."""
    sample = np.asarray(values, dtype=float)
    half = special.stdtrit(len(sample) - 1, (1 + confidence) / 2) * sample.std(ddof=1) / math.sqrt(len(sample))
    return float(sample.mean() - half), float(sample.mean() + half)


def assert_agrees(values: Sequence[float], theory: float, *, slack: float = 0.0, precision: float = 0.1) -> None:
    """The interval must meet [theory, theory + slack], and be narrow enough (half width / theory) to mean something.

    `slack` is what discrete steps add: at most one step.
    """
    low, high = interval(values)
    assert (high - low) / 2 <= precision * theory, f"too wide to tell: {low:.6g} .. {high:.6g} around {theory:.6g}"
    assert low <= theory + slack, f"theory {theory:.6g} is below {low:.6g} .. {high:.6g}"
    assert theory <= high, f"theory {theory:.6g} is above {low:.6g} .. {high:.6g}"


def poisson_pmf(mean: float, count: int) -> float:
    """Probability of `count` in the system of M/G/infinity with `mean` = arrival rate x mean service."""
    return float(stats.poisson.pmf(count, mean))
