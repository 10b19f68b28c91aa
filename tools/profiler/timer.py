"""How long a kernel takes: CUDA events around graph replays, perf_counter on a CPU; repeated until it is known.

Calls come as a list over rotating buffers, so that nothing is found in a cache that a real step would not find there.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Call = Callable[[], object]
OUTLIER = 1.3
"""A repeat above this many medians is an outlier: noticed, and left to the median to ignore."""


class Measured(NamedTuple):
    """Median microseconds of one call, the half width of its 95 % interval relative to it, repeats, outliers' share."""

    latency_us: float
    interval: float
    repeats: int
    outliers: float


@dataclass(frozen=True)
class Effort:
    """Repeat until the median's relative half width is below `precision`, or one of the caps is reached."""

    precision: float
    seconds: float
    least: int = 7
    most: int = 300
    sample_us: float = 100.0
    """A repeat takes at least so long, by running the calls several times: the clock has grains."""


def summarise(samples_us: Sequence[float]) -> Measured:
    """The median with its interval by order statistics, which asks nothing of the noise's shape."""
    ordered, count = sorted(samples_us), len(samples_us)
    median = statistics.median(ordered)
    reach = 0.98 * math.sqrt(count)  # 1.96 standard deviations of the rank of the median
    low, high = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    outliers = sum(value > OUTLIER * median for value in ordered) / count
    return Measured(median, (ordered[high] - ordered[low]) / 2 / median, count, outliers)


def measure(repeat: Callable[[], float], effort: Effort) -> Measured:
    """Repeat until it is known well enough; `repeat` returns microseconds of one call."""
    samples_us: list[float] = []
    deadline = time.perf_counter() + effort.seconds
    while True:
        samples_us.append(repeat())
        count = len(samples_us)
        if count < effort.least:
            continue
        if count >= effort.most or time.perf_counter() >= deadline:
            return summarise(samples_us)
        if count % 4 == 0:
            found = summarise(samples_us)
            if found.interval <= effort.precision:
                return found


def cpu_repeat(calls: Sequence[Call], effort: Effort) -> Callable[[], float]:
    """A repeat by the process's own clock; every call has run once before."""
    started = time.perf_counter()
    for call in calls:
        call()
    once_us = (time.perf_counter() - started) * 1e6
    rounds = max(1, math.ceil(effort.sample_us / max(once_us, 0.1)))

    def repeat() -> float:
        begin = time.perf_counter()
        for _ in range(rounds):
            for call in calls:
                call()
        return (time.perf_counter() - begin) * 1e6 / (rounds * len(calls))

    return repeat


def cuda_repeat(torch: Any, calls: Sequence[Call], effort: Effort, *, graph: bool = True) -> Callable[[], float]:
    """A repeat by CUDA events: the calls replayed from a CUDA graph, or (`graph` false) launched one by one."""
    stream = torch.cuda.Stream()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timed_us(launch: Call) -> float:
        begin.record(stream)
        launch()
        end.record(stream)
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    def once() -> None:
        for call in calls:
            call()

    with torch.cuda.stream(stream):
        once()  # compiles, picks algorithms, fills workspaces
        stream.synchronize()
        rounds = max(1, math.ceil(effort.sample_us / max(timed_us(once), 0.1)))

        def launch() -> None:
            for _ in range(rounds):
                once()

        replay: Call = launch
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, stream=stream):
                launch()
            replay = captured.replay
        timed_us(replay)

    def repeat() -> float:
        with torch.cuda.stream(stream):
            return timed_us(replay) / (rounds * len(calls))

    return repeat
