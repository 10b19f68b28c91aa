"""When queries arrive: integer nanoseconds since the start of the run, never decreasing, drawn a chunk at a time.

A closed loop has no arrival times of its own: the simulation starts the next query when one is answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ttsim_des.errors import InputError, bad_input
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Arrivals
from ttsim_des.units import NS_PER_S
from ttsim_des.workload.traces import scenario_trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Gaps = Callable[[NDArray[np.float64]], NDArray[np.float64]]

STREAM = "workload.arrivals"
CHUNK = 4096
CLOCK_END_NS = 2**62
"""Arrivals end here (146 years), well before 64-bit nanoseconds do."""


def arrival_times_ns(arrivals: Arrivals, streams: Streams, queries: int, base_dir: Path) -> Iterator[int]:
    """The arrival times of the queries 0 .. `queries` - 1 of an open process (any but `closed_loop`).

    The gap before query q is a function of q's own random number, so a run with more queries repeats the times of a
    shorter one. Raises `InputError` at the call, not at the first arrival, for a missing or unusable setting or trace.
    """
    if arrivals.process == "closed_loop":
        raise ValueError("a closed loop has no arrival times of its own")
    if arrivals.process == "together":
        return itertools.repeat(0, queries)
    trace = scenario_trace(arrivals, base_dir)
    if trace is not None:
        return _in_chunks(trace.first(queries).arrival_ns)
    rate_per_s = _needed(arrivals, "rate_per_s", arrivals.rate_per_s)
    if queries * NS_PER_S > CLOCK_END_NS * rate_per_s:
        raise _too_late(queries, rate_per_s)
    if arrivals.process == "constant":
        return (round(query * NS_PER_S / rate_per_s) for query in range(queries))
    burstiness = 1.0 if arrivals.process == "poisson" else _needed(arrivals, "burstiness", arrivals.burstiness)
    return _renewal(_gamma_gaps(rate_per_s, burstiness), streams, queries, rate_per_s)


def _gamma_gaps(rate_per_s: float, burstiness: float) -> Gaps:
    """Quantile function, in ns, of gamma gaps of mean 1/rate and shape `burstiness` (variance 1/(rate^2 shape))."""
    import numpy as np

    mean_ns = NS_PER_S / rate_per_s
    if burstiness == 1:  # exponential: the same gaps as the Poisson process, and no need of scipy
        return lambda u: -np.log1p(-u) * mean_ns
    from scipy.special import gammaincinv

    return lambda u: np.asarray(gammaincinv(burstiness, u)) * (mean_ns / burstiness)


def _renewal(gaps: Gaps, streams: Streams, queries: int, rate_per_s: float) -> Iterator[int]:
    """Sums of independent gaps. Each gap is rounded by itself, so chunks cannot show in the integer sums."""
    import numpy as np

    now_ns = 0
    for first in range(0, queries, CHUNK):
        count = min(CHUNK, queries - first)
        gap_ns = np.rint(gaps(streams.uniforms(STREAM, first, count, 1)[:, 0]))
        if not now_ns + float(gap_ns.sum()) < CLOCK_END_NS:
            raise _too_late(queries, rate_per_s)
        times_ns = np.cumsum(gap_ns.astype(np.int64)) + now_ns
        yield from times_ns.tolist()
        now_ns = int(times_ns[-1])


def _in_chunks(times_ns: NDArray[np.int64]) -> Iterator[int]:
    for first in range(0, len(times_ns), CHUNK):
        yield from times_ns[first : first + CHUNK].tolist()


def _needed(arrivals: Arrivals, setting: str, value: float | None) -> float:
    if value is None:
        raise bad_input(
            f"process {arrivals.process!r} needs {setting}", key=f"workload.arrivals.{setting}", expected="a value"
        )
    return value


def _too_late(queries: int, rate_per_s: float) -> InputError:
    return bad_input(
        f"{queries} queries at {rate_per_s:g} per second last longer than the clock goes ({CLOCK_END_NS:.1e} ns)",
        key="workload.arrivals.rate_per_s",
        expected="a higher rate or fewer queries",
    )
