"""A latency row in integers: exactly linear per unit of mean context between knots."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from ttsim_des.latency.interpolate import Curve

PIECE_SHARE = 250
"""A piece is at most 1/250 of the step (in ns) wide, which keeps whole-number slopes within 0.1 % of the row."""
MIN_PIECE = 64
_NEVER = 1 << 62


class KnotRow:
    """Step time of B decode sequences against the sum of their contexts, S.

    Knots c_k are absolute points of the mean context; between two of them a unit of mean context costs a whole number
    of nanoseconds, m_k:

        step_ns = base_k + (m_k * (S - B * c_k)) // B    for B c_k <= S < B c_(k+1)

    From one step to the next S grows by B, so a step takes exactly m_k longer than the one before. A row is built in
    floats once; the whole-number slopes below and above the true one are used in such shares that each piece meets the
    next exactly, so no error accumulates.
    """

    __slots__ = ("_arrays", "_from", "_pieces", "_seqs", "max_ctx_sum")

    def __init__(
        self, seqs: int, fixed_ns: int, curve: Curve, ns_per_unit: float, max_context: int, max_ctx_sum: int
    ) -> None:
        """The row of `seqs` sequences: `fixed_ns` + `ns_per_unit` * `curve` of the mean context, up to `max_context`.

        Past `max_context` the last slope goes on. `max_ctx_sum`: up to which sum of contexts it was measured.
        """
        self.max_ctx_sum = max_ctx_sum
        contexts = [0, *(int(c) for c in curve.x if 0 < c < max_context), max_context]
        self._seqs = seqs
        self._arrays: tuple[NDArray[np.int64], ...] | None = None
        values = [fixed_ns + round(ns_per_unit * curve.at(c)) for c in contexts]
        lines: list[tuple[int, int, int]] = []
        for at in range(len(contexts) - 1):
            _add_interval(lines, contexts[at], contexts[at + 1], values[at], values[at + 1])
        starts = [context * seqs for context, _, _ in lines]
        limit, ends = max_ctx_sum + 1, [*starts[1:], _NEVER]
        self._pieces = [
            (start, base_ns, slope_ns, end, end <= limit)
            for start, (_, base_ns, slope_ns), end in zip(starts, lines, ends, strict=True)
        ]
        """(start, base, slope, end, whether in the domain); the one in which the domain ends stands here twice."""
        self._from = starts
        """From which sum of contexts on each of them holds."""
        last = bisect_right(starts, limit) - 1
        start, base_ns, slope_ns, _, _ = self._pieces[last]
        if start < limit:
            self._pieces.insert(last, (start, base_ns, slope_ns, limit, True))
            self._from.insert(last + 1, limit)

    def step_ns(self, ctx_sum: int) -> int:
        """Nanoseconds of a step whose contexts add up to `ctx_sum`."""
        start, base_ns, slope_ns, _, _ = self._pieces[bisect_right(self._from, ctx_sum) - 1]
        return base_ns + slope_ns * (ctx_sum - start) // self._seqs

    def steps_ns(self, ctx_sums: NDArray[np.int64], low: int, high: int, more_ns: int) -> NDArray[np.int64]:
        """`step_ns` of many steps, and `more_ns` in each; `low` and `high` bound the sums."""
        times_ns: NDArray[np.int64]
        start, base_ns, slope_ns, end, _ = self._pieces[bisect_right(self._from, low) - 1]
        if high < end:  # as most
            times_ns = ctx_sums - start
            times_ns *= slope_ns
            times_ns //= self._seqs
            times_ns += base_ns + more_ns
            return times_ns
        if self._arrays is None:
            columns = (self._from, *zip(*(piece[:3] for piece in self._pieces), strict=True))
            self._arrays = tuple(np.array(each, dtype=np.int64) for each in columns)
        edges, starts, bases, slopes = self._arrays
        pieces = edges.searchsorted(ctx_sums, side="right") - 1
        times_ns = bases[pieces] + slopes[pieces] * (ctx_sums - starts[pieces]) // self._seqs
        times_ns += more_ns
        return times_ns

    def line(self, ctx_sum: int, max_steps: int) -> tuple[int, int, int, bool]:
        """Steps until the next knot or the edge of the domain (at most `max_steps`), nanoseconds of the first, their
        growth from step to step, and whether they are in the domain.
        """
        start, base_ns, slope_ns, end, in_domain = self._pieces[bisect_right(self._from, ctx_sum) - 1]
        seqs = self._seqs
        steps = -((ctx_sum - end) // seqs)
        first_ns = base_ns + slope_ns * (ctx_sum - start) // seqs
        return steps if steps < max_steps else max_steps, first_ns, slope_ns, in_domain


def _add_interval(lines: list[tuple[int, int, int]], start: int, end: int, start_ns: int, end_ns: int) -> None:
    """Add (context, base, slope) between two knots of the float row, narrow enough for whole-number slopes."""
    pieces = -(-(end - start) // max(MIN_PIECE, start_ns // PIECE_SHARE))
    at, at_ns = start, start_ns
    for piece in range(1, pieces + 1):
        to = start + (end - start) * piece // pieces
        to_ns = start_ns + (end_ns - start_ns) * (to - start) // (end - start)
        slope_ns, dearer = divmod(to_ns - at_ns, to - at)
        turn = to - dearer
        _add_line(lines, at, at_ns, slope_ns)
        if dearer:
            _add_line(lines, turn, at_ns + slope_ns * (turn - at), slope_ns + 1)
        at, at_ns = to, to_ns


def _add_line(lines: list[tuple[int, int, int]], context: int, base_ns: int, slope_ns: int) -> None:
    if not lines or lines[-1][2] != slope_ns:  # else the one before goes on: they meet exactly
        lines.append((context, base_ns, slope_ns))
