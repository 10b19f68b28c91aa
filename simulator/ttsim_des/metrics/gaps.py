"""Closed forms over runs of inter-token gaps: nothing here expands a run into its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ttsim_des.metrics.columns import column
from ttsim_des.metrics.runs import count_until
from ttsim_des.metrics.stats import (
    QUANTILES_PER_MILLE,
    IntArray,
    Summary,
    empty,
    exact_sum,
    observations_needed,
    rank,
)
from ttsim_des.records.long_table import LongTable
from ttsim_des.units import NS_PER_S

_BINS = 1 << 12
_COLUMNS = ("delivered_ns", "steps", "gap_ns", "increment_ns", "seqs", "extra_tokens")


@dataclass(frozen=True, slots=True)
class GapRuns:
    """Inter-token gaps: gap + j * increment, j < n, each `seqs` times; `extra` tokens came with each."""

    gap: IntArray
    increment: IntArray
    n: IntArray
    seqs: IntArray
    extra: IntArray

    @classmethod
    def of(cls, gaps: pa.Table | LongTable, start_ns: int | None, end_ns: int) -> GapRuns:
        """The gaps that end in (start_ns, end_ns] (from the beginning when start_ns is None), in increasing runs."""
        return cls._of([column(gaps, name) for name in _COLUMNS], start_ns, end_ns)

    @classmethod
    def _of(cls, columns: Sequence[IntArray], start_ns: int | None, end_ns: int) -> GapRuns:
        first, n, gap, increment, seqs, extra = columns
        spacing = gap + increment  # point j lies gap + j * increment after point j - 1
        stop = count_until(first, spacing, increment, n, np.full_like(first, end_ns))
        skip = np.zeros_like(n)
        if start_ns is not None:
            skip = count_until(first, spacing, increment, n, np.full_like(first, start_ns))
        gap, n = gap + skip * increment, stop - skip
        gap = np.where(increment < 0, gap + (n - 1) * increment, gap)
        kept = n > 0
        return cls(gap[kept], np.abs(increment)[kept], n[kept], seqs[kept], extra[kept])

    @classmethod
    def chunks(cls, gaps: pa.Table | LongTable, start_ns: int | None, end_ns: int) -> Iterator[GapRuns]:
        """The same gaps, piece by piece where there are many."""
        if not isinstance(gaps, LongTable):
            yield cls.of(gaps, start_ns, end_ns)
            return
        for part in gaps.parts:
            for columns in part.store.blocks(*_COLUMNS):
                yield cls._of(columns, start_ns, end_ns)

    @classmethod
    def joined(cls, pieces: Sequence[GapRuns]) -> GapRuns:
        """Several as one."""
        names = ("gap", "increment", "n", "seqs", "extra")
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in names))

    @property
    def top(self) -> IntArray:
        """The longest gap of each run."""
        return self.gap + (self.n - 1) * self.increment

    def between(self, low: int, high: int) -> GapRuns:
        """The runs that hold a gap of at least `low` and one of at most `high`."""
        live = (self.top >= low) & (self.gap <= high)
        return self.where(live)

    def where(self, kept: NDArray[np.bool_]) -> GapRuns:
        """Some of the runs."""
        return GapRuns(self.gap[kept], self.increment[kept], self.n[kept], self.seqs[kept], self.extra[kept])

    @property
    def count(self) -> int:
        """Number of gaps."""
        return exact_sum(self.n * self.seqs)

    @property
    def tokens(self) -> int:
        """Tokens that came at their ends: one for each gap, and accepted drafts."""
        return exact_sum(self.n * (self.seqs + self.extra))

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
        low, high = int(runs.gap.min()), int(runs.top.max())
        while low < high:
            middle = (low + high) // 2
            if below + runs.at_most(middle) >= position:
                high = middle
            else:
                low = middle + 1
            # Runs wholly outside [low, high] no longer change the answer.
            top = runs.top
            passed, live = top < low, (top >= low) & (runs.gap <= high)
            if not live.all():
                below += exact_sum((runs.n * runs.seqs)[passed])
                runs = runs.where(live)
        return low


@dataclass(frozen=True, slots=True)
class Gaps:
    """The inter-token gaps of a window, read again for every question where memory does not hold them all."""

    table: pa.Table | LongTable
    start_ns: int | None
    end_ns: int

    def chunks(self) -> Iterator[GapRuns]:
        """Runs of gaps, piece by piece."""
        return GapRuns.chunks(self.table, self.start_ns, self.end_ns)

    @property
    def count(self) -> int:
        """Number of gaps."""
        return sum(runs.count for runs in self.chunks())

    @property
    def tokens(self) -> int:
        """Tokens that came at their ends."""
        return sum(runs.tokens for runs in self.chunks())

    def ranked(self, positions: Sequence[int]) -> list[int]:
        """The smallest gaps by their positions (from 1) in order of length; exact.

        Where there are many pieces, a histogram tells in which bin each position falls; only runs that reach into these
        bins are then brought together.
        """
        if not isinstance(self.table, LongTable):
            whole = next(self.chunks())
            return [whole.ranked(position) for position in positions]
        low = min(int(runs.gap.min()) for runs in self.chunks() if runs.n.size)
        high = max(int(runs.top.max()) for runs in self.chunks() if runs.n.size)
        edges = low + np.arange(_BINS + 1) * max(1, -(-(high + 1 - low) // _BINS))
        below = np.cumsum(sum(_histogram(runs, edges) for runs in self.chunks()))
        found = []
        for position in positions:
            at = int(np.searchsorted(below, position))
            first, last = int(edges[at]), int(edges[at + 1]) - 1
            inside = GapRuns.joined([runs.between(first, last) for runs in self.chunks()])
            # Those of these runs that are shorter than the bin have been counted below it already.
            counted = inside.at_most(first - 1) if at else 0
            found.append(inside.ranked(position - (int(below[at - 1]) if at else 0) + counted))
        return found

    def describe_ns(self) -> Summary:
        """Count, mean and quantiles in seconds, as `stats.describe_ns` of all the gaps would give."""
        count = total_ns = 0
        for runs in self.chunks():
            count, total_ns = count + runs.count, total_ns + runs.total_ns
        if count == 0:
            return empty()
        given = {key: q for key, q in QUANTILES_PER_MILLE.items() if count >= observations_needed(q)}
        values = self.ranked([rank(q, count) for q in given.values()])
        quantiles = {key: value / NS_PER_S for key, value in zip(given, values, strict=True)}
        mean = total_ns / count / NS_PER_S
        return {"count": count, "mean": mean, **dict.fromkeys(QUANTILES_PER_MILLE), **quantiles}


def _histogram(runs: GapRuns, edges: IntArray) -> IntArray:
    """How many gaps lie in each bin [edge, next edge)."""
    width = edges[1] - edges[0]
    first, last = (runs.gap - edges[0]) // width, (runs.top - edges[0]) // width
    counts = np.zeros(edges.size - 1, dtype=np.int64)
    within = first == last
    np.add.at(counts, first[within], (runs.n * runs.seqs)[within])
    across = ~within
    bins = (last - first + 1)[across]
    row = np.repeat(np.flatnonzero(across), bins)
    index = first[row] + np.arange(row.size) - np.repeat(np.cumsum(bins) - bins, bins)
    step = np.maximum(runs.increment[row], 1)
    reached = [np.clip((edges[place] - 1 - runs.gap[row]) // step + 1, 0, runs.n[row]) for place in (index, index + 1)]
    np.add.at(counts, index, (reached[1] - reached[0]) * runs.seqs[row])
    return counts
