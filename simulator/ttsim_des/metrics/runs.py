"""Closed forms over linear runs: nothing here expands a run into its steps or tokens.

A run is `n` points in time, point j at `first + j * gap + increment * j * (j - 1) / 2`, never decreasing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ttsim_des.metrics.columns import column
from ttsim_des.metrics.stats import (
    QUANTILES_PER_MILLE,
    FloatArray,
    IntArray,
    Summary,
    empty,
    exact_sum,
    observations_needed,
    rank,
)
from ttsim_des.records.arrow import numpy_column
from ttsim_des.units import NS_PER_S

FAR_NS = np.iinfo(np.int64).max


def points(first: IntArray, gap: IntArray, increment: IntArray, j: IntArray) -> IntArray:
    """The j-th point in time of each run."""
    return first + j * gap + increment * (j * (j - 1) // 2)


def count_until(first: IntArray, gap: IntArray, increment: IntArray, n: IntArray, until: IntArray) -> IntArray:
    """How many points of each run lie at or before `until` (one time per run)."""
    low = np.zeros_like(n)
    high = np.where(first > until, 0, n)
    low = np.where(points(first, gap, increment, np.maximum(n - 1, 0)) <= until, high, low)
    open_rows = np.flatnonzero(low < high)
    while open_rows.size:
        middle = (low[open_rows] + high[open_rows] + 1) // 2
        reached = points(first[open_rows], gap[open_rows], increment[open_rows], middle - 1) <= until[open_rows]
        low[open_rows] = np.where(reached, middle, low[open_rows])
        high[open_rows] = np.where(reached, high[open_rows], middle - 1)
        open_rows = open_rows[low[open_rows] < high[open_rows]]
    return low


@dataclass(frozen=True, slots=True)
class StepRuns:
    """The STEPS table as arrays; `next_start` is when the same replica's next run starts (FAR_NS after the last)."""

    start: IntArray
    n: IntArray
    period: IntArray
    period_increment: IntArray
    duration: IntArray
    increment: IntArray
    next_start: IntArray
    table: pa.Table

    @classmethod
    def of(cls, steps: pa.Table) -> StepRuns:
        """Rows must be sorted by (pool, replica, start_ns)."""
        start = column(steps, "start_ns")
        following = np.full_like(start, FAR_NS)
        if start.size > 1:
            same = replica_codes(steps)
            following[:-1] = np.where(same[1:] == same[:-1], start[1:], FAR_NS)
        return cls(
            start=start,
            n=column(steps, "steps"),
            period=column(steps, "period_ns"),
            period_increment=column(steps, "period_increment_ns"),
            duration=column(steps, "duration_ns"),
            increment=column(steps, "increment_ns"),
            next_start=following,
            table=steps,
        )

    def column(self, name: str) -> IntArray:
        """A column of the table."""
        return column(self.table, name)

    def started_until(self, until_ns: int) -> IntArray:
        """Steps of each run that start at or before `until_ns`."""
        return count_until(self.start, self.period, self.period_increment, self.n, np.full_like(self.start, until_ns))

    def device_ns_until(self, until_ns: int) -> IntArray:
        """Device time of each run up to `until_ns`; the step that is running counts up to there."""
        started = self.started_until(until_ns)
        whole = np.maximum(started - 1, 0)
        last_start = points(self.start, self.period, self.period_increment, whole)
        last = np.minimum(self.duration + whole * self.increment, until_ns - last_start)
        return np.where(started > 0, whole * self.duration + self.increment * (whole * (whole - 1) // 2) + last, 0)

    def end(self) -> IntArray:
        """When each run's last step ends on the device."""
        last = self.n - 1
        return points(self.start, self.period, self.period_increment, last) + self.duration + last * self.increment

    def integral_until(self, until_ns: int, value: IntArray, slope: FloatArray | None = None) -> FloatArray:
        """Time integral up to `until_ns` of a value that is `value + j * slope` from the start of step j to the next.

        The last step of a run lasts for its period, but not beyond the start of the replica's next run.
        """
        span_end = points(self.start, self.period, self.period_increment, self.n)
        until = np.minimum(np.minimum(span_end, self.next_start), until_ns)
        started = count_until(self.start, self.period, self.period_increment, self.n, until)
        whole = np.maximum(started - 1, 0)
        whole_ns = points(np.zeros_like(self.start), self.period, self.period_increment, whole)
        rest_ns = until - (self.start + whole_ns)
        total = value * (whole_ns + rest_ns).astype(np.float64)
        if slope is not None:
            m = whole.astype(np.float64)
            sum_j, sum_j2 = m * (m - 1) / 2, m * (m - 1) * (2 * m - 1) / 6
            total += slope * (self.period * sum_j + self.period_increment * sum_j2 + m * rest_ns)
        return np.where(started > 0, total, 0.0)


def replica_codes(table: pa.Table) -> IntArray:
    """One integer per (pool, replica) of each row; equal rows, equal codes."""
    pool: IntArray = numpy_column(table.column("pool").combine_chunks().dictionary_encode().indices).astype(np.int64)
    return pool * 1_000_000 + column(table, "replica")


@dataclass(frozen=True, slots=True)
class GapRuns:
    """Inter-token gaps: gap + j * increment, j < n, each `seqs` times."""

    gap: IntArray
    increment: IntArray
    n: IntArray
    seqs: IntArray

    @classmethod
    def of(cls, gaps: pa.Table, start_ns: int | None, end_ns: int) -> GapRuns:
        """The gaps that end in (start_ns, end_ns] (from the beginning when start_ns is None), in increasing runs."""
        first, n = column(gaps, "delivered_ns"), column(gaps, "steps")
        gap, increment, seqs = column(gaps, "gap_ns"), column(gaps, "increment_ns"), column(gaps, "seqs")
        spacing = gap + increment  # point j lies gap + j * increment after point j - 1
        stop = count_until(first, spacing, increment, n, np.full_like(first, end_ns))
        skip = np.zeros_like(n)
        if start_ns is not None:
            skip = count_until(first, spacing, increment, n, np.full_like(first, start_ns))
        gap, n = gap + skip * increment, stop - skip
        gap = np.where(increment < 0, gap + (n - 1) * increment, gap)
        kept = n > 0
        return cls(gap[kept], np.abs(increment)[kept], n[kept], seqs[kept])

    @property
    def count(self) -> int:
        """Number of gaps."""
        return exact_sum(self.n * self.seqs)

    @property
    def total_ns(self) -> int:
        """Sum of all gaps."""
        sums = self.n * self.gap + self.increment * (self.n * (self.n - 1) // 2)
        # Split so that sequences x time cannot overflow 64 bits.
        return (exact_sum((sums >> 24) * self.seqs) << 24) + exact_sum((sums & 0xFFFFFF) * self.seqs)

    def at_most(self, value: int) -> int:
        """How many gaps are `value` nanoseconds or shorter."""
        return exact_sum(self._at_most(value) * self.seqs)

    def _at_most(self, value: int) -> IntArray:
        steps = np.where(self.increment > 0, (value - self.gap) // np.maximum(self.increment, 1) + 1, self.n)
        return np.where(value < self.gap, 0, np.minimum(steps, self.n))

    def ranked(self, position: int) -> int:
        """The `position`-th smallest gap (from 1), by bisection over integers."""
        runs, below = self, 0
        low, high = int(runs.gap.min()), int((runs.gap + (runs.n - 1) * runs.increment).max())
        while low < high:
            middle = (low + high) // 2
            if below + runs.at_most(middle) >= position:
                high = middle
            else:
                low = middle + 1
            # Runs wholly outside [low, high] no longer change the answer.
            top = runs.gap + (runs.n - 1) * runs.increment
            passed, live = top < low, (top >= low) & (runs.gap <= high)
            if not live.all():
                below += exact_sum((runs.n * runs.seqs)[passed])
                runs = GapRuns(runs.gap[live], runs.increment[live], runs.n[live], runs.seqs[live])
        return low

    def describe_ns(self) -> Summary:
        """Count, mean and quantiles in seconds, as `stats.describe_ns` of all the gaps would give."""
        count = self.count
        if count == 0:
            return empty()
        given = {key: q for key, q in QUANTILES_PER_MILLE.items() if count >= observations_needed(q)}
        quantiles = {key: self.ranked(rank(q, count)) / NS_PER_S for key, q in given.items()}
        mean = self.total_ns / count / NS_PER_S
        return {"count": count, "mean": mean, **dict.fromkeys(QUANTILES_PER_MILLE), **quantiles}
