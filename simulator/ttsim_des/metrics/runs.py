"""Closed forms over runs of steps: nothing here expands a run into its steps.

A run is `n` points in time, point j at `first + j * gap + increment * j * (j - 1) / 2`, never decreasing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ttsim_des.metrics.columns import column, flags
from ttsim_des.metrics.stats import FloatArray, IntArray
from ttsim_des.records.arrow import numpy_column
from ttsim_des.records.long_table import LongTable

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


_ALIKE = ("decode_seqs", "running", "waiting", "in_domain")
_APART = ("prefill_seqs", "preempted")
"""What does not change within a stretch of steps, and what no stretch of several steps has (records.canonical)."""


@dataclass(frozen=True, slots=True)
class StepRuns:
    """Rows of the STEPS table as arrays; `column` reads others.

    `next_start` is when the same replica's next run starts (FAR_NS after the last), `passed` how many steps of its
    stretch lie before a run.
    """

    start: IntArray
    n: IntArray
    period: IntArray
    period_increment: IntArray
    duration: IntArray
    increment: IntArray
    next_start: IntArray
    passed: IntArray
    column: Callable[[str], IntArray]

    @classmethod
    def of(cls, steps: pa.Table) -> StepRuns:
        """All rows, which must be sorted by (pool, replica, start_ns)."""
        codes = replica_codes(steps)
        return cls._of(lambda name: _whole_numbers(steps, name), codes, FAR_NS, 0)

    @classmethod
    def chunks(cls, steps: pa.Table | LongTable) -> Iterator[StepRuns]:
        """All rows, piece by piece where there are many."""
        if not isinstance(steps, LongTable):
            yield cls.of(steps)
            return
        for part in steps.parts:
            passed, before = 0, [-1]
            blocks = [*map(int, part.store.starts)]
            for index in range(len(blocks)):
                columns = dict(zip(part.store.names, part.store.block(index, *part.store.names), strict=True))
                goes_on = before == [int(columns[name][0]) for name in _ALIKE]
                goes_on = goes_on and not any(columns[name][0] for name in _APART)
                following = int(part.store.block(index + 1, "start_ns")[0][0]) if index + 1 < len(blocks) else FAR_NS
                one = np.zeros_like(columns["steps"])
                runs = cls._of(columns.__getitem__, one, following, passed if goes_on else 0)
                yield runs
                ended = any(columns[name][-1] for name in _APART)
                before = [-1] if ended else [int(columns[name][-1]) for name in _ALIKE]
                passed = int(runs.passed[-1] + runs.n[-1])

    @classmethod
    def _of(cls, read: Callable[[str], IntArray], codes: IntArray, next_ns: int, passed_before: int) -> StepRuns:
        """`next_ns`: when the run behind these starts; `passed_before`: steps before them of the stretch they go on."""
        start, n = read("start_ns"), read("steps")
        following = np.full_like(start, next_ns)
        passed = np.zeros_like(n)
        if start.size:
            following[:-1] = np.where(codes[1:] == codes[:-1], start[1:], FAR_NS)
            begins = np.ones(start.size, dtype=np.bool_)
            begins[1:] = codes[1:] != codes[:-1]
            for name in _ALIKE:
                begins[1:] |= read(name)[1:] != read(name)[:-1]
            for name in _APART:
                begins |= read(name) > 0
                begins[1:] |= read(name)[:-1] > 0
            before = np.cumsum(n) - n
            firsts = np.flatnonzero(begins)
            stretch = np.cumsum(begins) - 1
            passed = before - before[firsts][stretch]
            passed[stretch == 0] += passed_before
        return cls(
            start=start,
            n=n,
            period=read("period_ns"),
            period_increment=read("period_increment_ns"),
            duration=read("duration_ns"),
            increment=read("increment_ns"),
            next_start=following,
            passed=passed,
            column=read,
        )

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

    def integral_until(
        self, until_ns: int, value: IntArray | FloatArray, slope: FloatArray | None = None
    ) -> FloatArray:
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


def _whole_numbers(table: pa.Table, name: str) -> IntArray:
    if pa.types.is_boolean(table.schema.field(name).type):
        return flags(table, name).astype(np.int64)
    return column(table, name)


def replica_codes(table: pa.Table) -> IntArray:
    """One integer per (pool, replica) of each row; equal rows, equal codes."""
    pool: IntArray = numpy_column(table.column("pool").combine_chunks().dictionary_encode().indices).astype(np.int64)
    return pool * 1_000_000 + column(table, "replica")
