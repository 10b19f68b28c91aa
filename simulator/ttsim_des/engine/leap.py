"""Leaping: while a batch only decodes, its steps are known in advance, so one event covers many of them.

The steps of a leap start at known times, linear in the step index piece by piece. A *pop* is the moment at which the
tokens of a step come back to the engine. Everything is integer arithmetic: where a leap is cut cannot change a
result.
"""

from __future__ import annotations

from math import isqrt

from ttsim_des.latency.shape import Run, StepModel, StepShape
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.records.tables import pack_gap, pack_step

Line = tuple[int, int, int, int, int, int, bool]
"""Steps whose starts and durations are linear: the first columns of the steps table, and in_domain."""


class Leap:
    """The next `pops` pops of a batch that decodes, and as many steps launched meanwhile.

    It ends at the edge of the model's domain: the steps table says how many blocks are held on both sides of it.
    `lines` say when its steps run. `is_async`: a step is launched when the one before it is popped (pop k is the start
    of step k); else when it is popped itself (pop k is the end of step k). After a pop the engine looks at its inputs
    once its host time is over: `first_update_ns` after pop 0, `update_ns` after the others.
    """

    __slots__ = (
        *("_described", "cut_ns", "first_duration_ns", "first_pop_ns", "first_update_ns", "is_async", "last_end_ns"),
        *("last_pop_ns", "lines", "pops", "update_ns"),
    )

    def __init__(
        self,
        model: StepModel,
        shape: StepShape,
        run: Run,
        pops: int,
        start_ns: int,
        host_ns: int,
        first_update_ns: int,
        update_ns: int,
        is_async: bool,
        described: tuple[int, ...],
    ) -> None:
        """A leap from a step of `shape` on, which starts at `start_ns`; `run`: what `model` says of as many steps.

        `host_ns`: what planning a step takes. `described`: the columns of the steps table from decode_seqs to
        preempted, the same for all of them.
        """
        self.is_async, self._described = is_async, described
        self.first_update_ns, self.update_ns = first_update_ns, update_ns
        self.cut_ns = -1
        """When an input last made the leap end early."""
        runs = decode_runs(model, shape, pops, run)
        self.pops = sum(steps for steps, _, _, _ in runs)
        if is_async:
            self.lines = async_lines(runs, start_ns, host_ns + first_update_ns, host_ns + update_ns)
        else:
            self.lines = sync_lines(runs, start_ns, host_ns + update_ns)
        self._close()

    def _close(self) -> None:
        """Work out the first and the last pop, and when the last step ends on the device."""
        start_ns, steps, period_ns, growth_ns, duration_ns, increment_ns, _ = self.lines[0]
        self.first_duration_ns = duration_ns
        self.first_pop_ns = start_ns if self.is_async else start_ns + duration_ns
        if len(self.lines) > 1:
            start_ns, steps, period_ns, growth_ns, duration_ns, increment_ns, _ = self.lines[-1]
        last = steps - 1
        start_ns += last * period_ns + growth_ns * (last * (last - 1) // 2)
        self.last_end_ns = end_ns = start_ns + duration_ns + last * increment_ns
        self.last_pop_ns = start_ns if self.is_async else end_ns

    def pop_ns(self, index: int) -> int:
        """When pop `index` (from 0) happens."""
        for start_ns, steps, period_ns, growth_ns, duration_ns, increment_ns, _ in self.lines:
            if index < steps:
                pop_ns = start_ns + _passed(index, period_ns, growth_ns)
                return pop_ns if self.is_async else pop_ns + duration_ns + index * increment_ns
            index -= steps
        raise IndexError(index)

    def cut(self, pops: int) -> None:
        """End the leap after its first `pops` pops."""
        self.pops, left = pops, pops
        for index, line in enumerate(self.lines):
            if left <= line[1]:
                self.lines[index:] = [(line[0], left, *line[2:])]
                break
            left -= line[1]
        self._close()

    def first_pop_seeing(self, time_ns: int) -> int:
        """The first pop after which the engine's look at its inputs is not before `time_ns`; else the last."""
        if self.pops == 1 or self.first_pop_ns + self.first_update_ns >= time_ns:
            return 0
        time_ns -= self.update_ns
        passed = 0
        for start_ns, steps, period_ns, growth_ns, duration_ns, increment_ns, _ in self.lines:
            distance_ns, apart_ns = time_ns - start_ns, period_ns  # from pop to pop of this run
            if not self.is_async:
                distance_ns, apart_ns = distance_ns - duration_ns, apart_ns + increment_ns
            if _passed(steps - 1, apart_ns, growth_ns) >= distance_ns:
                return max(1, passed + _first_reaching(distance_ns, apart_ns, growth_ns))
            passed += steps
        return self.pops - 1

    def record(self, recorder: StepRecorder, pops: int) -> None:
        """Leave lines in the steps table, and of the first `pops` pops but the very first in that of token gaps."""
        step_rows, gap_rows, described = recorder.step_rows, recorder.gap_rows, self._described
        seqs, left = described[0], pops - 1
        skip = 0 if self.is_async else 1
        for start_ns, steps, period_ns, growth_ns, duration_ns, increment_ns, in_domain in self.lines:
            step_rows += pack_step(
                start_ns, steps, period_ns, growth_ns, duration_ns, increment_ns, *described, in_domain
            )
            count = steps - skip if steps - skip < left else left
            if count > 0:
                gap_ns = period_ns + skip * growth_ns
                if self.is_async:
                    delivered_ns = start_ns + gap_ns
                else:
                    delivered_ns = start_ns + skip * (period_ns + increment_ns) + duration_ns
                gap_rows += pack_gap(delivered_ns, count, gap_ns, growth_ns, seqs, 0)
                left -= count
            skip = 0


def shortest_ns(first_ns: int, steps: int, increment_ns: int) -> int:
    """The shortest of so many steps, of which each takes `increment_ns` more than the one before."""
    return first_ns if increment_ns >= 0 else first_ns + (steps - 1) * increment_ns


def _passed(periods: int, period_ns: int, growth_ns: int) -> int:
    """So many periods, each `growth_ns` longer than the one before."""
    return periods * period_ns + growth_ns * (periods * (periods - 1) // 2)


def _first_reaching(distance_ns: int, period_ns: int, growth_ns: int) -> int:
    """The smallest k >= 0 at which k periods, each `growth_ns` longer than the one before, add up to `distance_ns`.

    The caller knows that there is one, and that no period before it is negative.
    """
    if distance_ns <= 0:
        return 0
    if not growth_ns:
        return -(-distance_ns // period_ns)
    # k periods take growth/2 k^2 + (period - growth/2) k: invert with whole numbers, then correct both ways.
    twice = 2 * period_ns - growth_ns
    k = max(0, (isqrt(max(0, twice * twice + 8 * growth_ns * distance_ns)) - twice) // (2 * growth_ns))
    while k and _passed(k - 1, period_ns, growth_ns) >= distance_ns:
        k -= 1
    while _passed(k, period_ns, growth_ns) < distance_ns:
        k += 1
    return k


def decode_runs(model: StepModel, shape: StepShape, steps: int, run: Run) -> list[Run]:
    """The durations of `steps` steps of a decode batch that begins with `shape`, as linear runs; `run` is the first.

    Fewer where the domain ends, or begins, before them.
    """
    runs, in_domain = [], run[3]
    while run[0] < steps and run[3] is in_domain:
        runs.append(run)
        passed = run[0]
        steps -= passed
        seqs, ctx_sum, ctx_max, chunks, rows, _, _ = shape
        shape = StepShape(seqs, ctx_sum + passed * seqs, ctx_max + passed, chunks, rows)
        run = model.decode_run(shape, steps)
    if run[3] is in_domain:
        runs.append(run)
    return runs


def sync_lines(runs: list[Run], start_ns: int, host_ns: int) -> list[Line]:
    """Steps with `host_ns` of host time between two of them."""
    lines: list[Line] = []
    for steps, first_ns, increment_ns, in_domain in runs:
        period_ns = first_ns + host_ns
        lines.append((start_ns, steps, period_ns, increment_ns, first_ns, increment_ns, in_domain))
        start_ns += steps * period_ns + increment_ns * (steps * (steps - 1) // 2)
    return lines


def async_lines(runs: list[Run], start_ns: int, first_host_ns: int, host_ns: int) -> list[Line]:
    """Steps that follow each other at once, unless the host takes longer than a step: it then sets the pace.

    `first_host_ns` is the host time that must pass between the starts of the first two steps, `host_ns` between others.
    """
    lines: list[Line] = []
    for steps, first_ns, increment_ns, in_domain in runs:
        floor_ns = host_ns if lines or first_host_ns < host_ns else first_host_ns
        if shortest_ns(first_ns, steps, increment_ns) >= floor_ns:
            lines.append((start_ns, steps, first_ns, increment_ns, first_ns, increment_ns, in_domain))
            start_ns += steps * first_ns + increment_ns * (steps * (steps - 1) // 2)
            continue
        parts = [(steps, first_ns)] if lines else [(1, first_ns), (steps - 1, first_ns + increment_ns)]
        for part_steps, part_ns in parts:
            duration_ns, floor_ns = part_ns, host_ns if lines else first_host_ns
            for count, period_ns, growth_ns in _at_least(part_steps, part_ns, increment_ns, floor_ns):
                lines.append((start_ns, count, period_ns, growth_ns, duration_ns, increment_ns, in_domain))
                duration_ns += count * increment_ns
                start_ns += _passed(count, period_ns, growth_ns)
    return lines


def _at_least(steps: int, first_ns: int, increment_ns: int, floor_ns: int) -> list[tuple[int, int, int]]:
    """A linear run (steps, first, increment) with every value below `floor_ns` raised to it."""
    last_ns = first_ns + (steps - 1) * increment_ns
    if steps <= 0:
        return []
    if first_ns >= floor_ns and last_ns >= floor_ns:
        return [(steps, first_ns, increment_ns)]
    if first_ns < floor_ns and last_ns < floor_ns:
        return [(steps, floor_ns, 0)]
    if increment_ns > 0:
        below = -(-(floor_ns - first_ns) // increment_ns)
        return [(below, floor_ns, 0), (steps - below, first_ns + below * increment_ns, increment_ns)]
    above = (first_ns - floor_ns) // -increment_ns + 1
    return [(above, first_ns, increment_ns), (steps - above, floor_ns, 0)]
