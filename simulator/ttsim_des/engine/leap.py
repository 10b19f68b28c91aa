"""Leaping: while a batch only decodes, its steps are known in advance, so one event covers many of them.

The steps of a leap start at known times, linear in the step index piece by piece. A *pop* is the moment at which the
tokens of a step come back to the engine. Everything is integer arithmetic: where a leap is cut cannot change a
result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ttsim_des.latency.shape import Run, StepModel, StepShape
from ttsim_des.records.recorder import StepRow


class Piece(NamedTuple):
    """Steps `first` .. `first + steps - 1` of a leap; the first of them starts at `start_ns`.

    Step k of the piece (from 0) runs for `duration_ns + k * increment_ns` on the device, and the next one starts
    `period_ns + k * period_increment_ns` after it.
    """

    first: int
    start_ns: int
    steps: int
    period_ns: int
    period_increment_ns: int
    duration_ns: int
    increment_ns: int


@dataclass(slots=True)
class Leap:
    """The next `pops` pops of a batch that decodes, and as many steps launched meanwhile.

    `is_async`: a step is launched when the one before it is popped (pop k is the start of step k); else when it is
    popped itself (pop k is the end of step k). After a pop the engine looks at its inputs once its host time is over:
    `first_update_ns` after pop 0, `update_ns` after the others. `row` is what the step records say of each step.
    """

    pops: int
    is_async: bool
    pieces: list[Piece]
    first_update_ns: int
    update_ns: int
    row: StepRow
    last_pop_ns: int = -1
    cut_ns: int = -1
    """When an input last made the leap end early."""

    def start_ns(self, index: int) -> int:
        """When step `index` starts (that after the last included)."""
        for first, start_ns, steps, period_ns, increment_ns, _, _ in self.pieces:
            k = index - first
            if k <= steps:
                return start_ns + k * period_ns + increment_ns * (k * (k - 1) // 2)
        raise IndexError(index)

    def end_ns(self, index: int) -> int:
        """When step `index` ends on the device."""
        for first, start_ns, steps, period_ns, increment_ns, duration_ns, growth_ns in self.pieces:
            k = index - first
            if k < steps:
                waited_ns = k * period_ns + increment_ns * (k * (k - 1) // 2)
                return start_ns + waited_ns + duration_ns + k * growth_ns
        raise IndexError(index)

    def pop_ns(self, index: int) -> int:
        """When pop `index` (from 0) happens."""
        return self.start_ns(index) if self.is_async else self.end_ns(index)

    def last_look_ns(self) -> int:
        """When the engine looks at its inputs for the last time before the last pop; -1 when there is one pop only."""
        before = self.pops - 2
        if before < 0:
            return -1
        return self.pop_ns(before) + (self.update_ns if before else self.first_update_ns)

    def first_pop_seeing(self, time_ns: int) -> int:
        """The first pop after which the engine's look at its inputs is not before `time_ns`; else the last."""
        if self.pop_ns(0) + self.first_update_ns >= time_ns:
            return 0
        low, high = min(1, self.pops - 1), self.pops - 1
        time_ns -= self.update_ns
        while low < high:
            middle = (low + high) // 2
            if self.pop_ns(middle) >= time_ns:
                high = middle
            else:
                low = middle + 1
        return low

    def clipped(self, skip: int, steps: int) -> Iterator[Piece]:
        """The pieces of the `steps` steps after the first `skip`."""
        stop = skip + steps
        for piece in self.pieces:
            first, start_ns, count, period_ns, increment_ns, duration_ns, growth_ns = piece
            if first >= skip and first + count <= stop:
                yield piece
                continue
            k, end = max(skip - first, 0), min(stop - first, count)
            if k < end:
                start_ns += k * period_ns + increment_ns * (k * (k - 1) // 2)
                period_ns, duration_ns = period_ns + k * increment_ns, duration_ns + k * growth_ns
                yield Piece(first + k, start_ns, end - k, period_ns, increment_ns, duration_ns, growth_ns)


def sync_pieces(durations: Iterator[Run], start_ns: int, host_ns: int) -> list[Piece]:
    """Steps with `host_ns` of host time between two of them."""
    pieces, index = [], 0
    for steps, first_ns, increment_ns in durations:
        period_ns = first_ns + host_ns
        pieces.append(Piece(index, start_ns, steps, period_ns, increment_ns, first_ns, increment_ns))
        index += steps
        start_ns += steps * period_ns + increment_ns * (steps * (steps - 1) // 2)
    return pieces


def async_pieces(durations: Iterator[Run], start_ns: int, first_host_ns: int, host_ns: int) -> list[Piece]:
    """Steps that follow each other at once, unless the host takes longer than a step: it then sets the pace.

    `first_host_ns` is the host time that must pass between the starts of the first two steps, `host_ns` between others.
    """
    pieces: list[Piece] = []
    index = 0
    for steps, first_ns, increment_ns in durations:
        last_ns = first_ns + (steps - 1) * increment_ns
        floor_ns = first_host_ns if not index and first_host_ns > host_ns else host_ns
        if first_ns >= floor_ns and last_ns >= floor_ns:
            pieces.append(Piece(index, start_ns, steps, first_ns, increment_ns, first_ns, increment_ns))
            index += steps
            start_ns += steps * first_ns + increment_ns * (steps * (steps - 1) // 2)
            continue
        runs = [Run(steps, first_ns, increment_ns)]
        if not index:
            runs = [Run(1, first_ns, 0), Run(steps - 1, first_ns + increment_ns, increment_ns)]
        offset = 0
        for run in runs:
            for count, period_ns, growth_ns in _at_least(run, host_ns if index else first_host_ns):
                duration_ns = first_ns + offset * increment_ns
                pieces.append(Piece(index, start_ns, count, period_ns, growth_ns, duration_ns, increment_ns))
                index += count
                offset += count
                start_ns += count * period_ns + growth_ns * (count * (count - 1) // 2)
    return pieces


def _at_least(run: Run, floor_ns: int) -> list[Run]:
    """The same run with every value below `floor_ns` raised to it."""
    steps, first_ns, increment_ns = run
    last_ns = first_ns + (steps - 1) * increment_ns
    if steps <= 0:
        return []
    if first_ns >= floor_ns and last_ns >= floor_ns:
        return [run]
    if first_ns < floor_ns and last_ns < floor_ns:
        return [Run(steps, floor_ns, 0)]
    if increment_ns > 0:
        below = -(-(floor_ns - first_ns) // increment_ns)
        return [Run(below, floor_ns, 0), Run(steps - below, first_ns + below * increment_ns, increment_ns)]
    above = (first_ns - floor_ns) // -increment_ns + 1
    return [Run(above, first_ns, increment_ns), Run(steps - above, floor_ns, 0)]


def decode_runs(model: StepModel, shape: StepShape, steps: int) -> Iterator[Run]:
    """The durations of `steps` steps of a decode batch that begins with `shape`, as linear runs."""
    while True:
        run = model.decode_run(shape, steps)
        yield run
        steps -= run.steps
        if steps <= 0:
            return
        seqs, ctx_sum, ctx_max, chunks, rows, drafts = shape
        shape = StepShape(seqs, ctx_sum + run.steps * seqs, ctx_max + run.steps, chunks, rows, drafts)
