"""Leaping: while a batch only decodes, its steps are known in advance, so one event covers many of them.

A *pop* is the moment at which the tokens of a step come back to the engine. Pop 0 has a known time; from then on pops
follow each other at periods that are linear in the step index, run by run. Everything is integer arithmetic: where
a leap is cut cannot change a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ttsim_des.latency.shape import Run, StepModel, StepShape
from ttsim_des.records.recorder import StepRow


def series_sum(steps: int, first: int, increment: int) -> int:
    """first + (first + increment) + ..., `steps` terms."""
    return steps * first + increment * (steps * (steps - 1) // 2)


def decode_runs(model: StepModel, shape: StepShape, steps: int) -> list[Run]:
    """The durations of `steps` steps of a decode batch that begins with `shape`, as linear runs."""
    runs = []
    while True:
        run = model.decode_run(shape, steps)
        runs.append(run)
        steps -= run.steps
        if steps <= 0:
            return runs
        seqs, ctx_sum, ctx_max, chunks, rows, drafts = shape
        shape = StepShape(seqs, ctx_sum + run.steps * seqs, ctx_max + run.steps, chunks, rows, drafts)


def clip_runs(runs: Sequence[Run], skip: int, steps: int) -> Iterator[Run]:
    """The runs of the `steps` steps that follow the first `skip`."""
    for run in runs:
        if steps <= 0:
            return
        taken = min(run.steps - skip, steps)
        if taken <= 0:
            skip -= run.steps
            continue
        yield Run(taken, run.first_ns + skip * run.increment_ns, run.increment_ns)
        skip, steps = 0, steps - taken


def runs_at_least(runs: Sequence[Run], floor_ns: int) -> Iterator[Run]:
    """The same runs with every value below `floor_ns` raised to it."""
    for run in runs:
        steps, first, increment = run
        last = first + (steps - 1) * increment
        if first >= floor_ns and last >= floor_ns:
            yield run
        elif first < floor_ns and last < floor_ns:
            yield Run(steps, floor_ns, 0)
        elif increment > 0:
            below = -(-(floor_ns - first) // increment)
            yield Run(below, floor_ns, 0)
            yield Run(steps - below, first + below * increment, increment)
        else:
            above = (first - floor_ns) // -increment + 1
            yield Run(above, first, increment)
            yield Run(steps - above, floor_ns, 0)


def paired_runs(one: Sequence[Run], other: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Two lists of runs over the same steps, cut so that both are linear in each piece."""
    ones, others = list(reversed(one)), list(reversed(other))
    while ones and others:
        first, second = ones.pop(), others.pop()
        steps = min(first.steps, second.steps)
        yield Run(steps, *first[1:]), Run(steps, *second[1:])
        for rest, stack in ((first, ones), (second, others)):
            if rest.steps > steps:
                stack.append(Run(rest.steps - steps, rest.first_ns + steps * rest.increment_ns, rest.increment_ns))


@dataclass(slots=True)
class Leap:
    """`pops` deliveries of one batch: the first at `first_pop_ns`, then at distances given by `periods`.

    The `durations` are the device times of the steps launched in the leap, as many as pops; the first of them starts
    at `first_start_ns`. After a pop the engine looks at its inputs once its host time is over: `first_update_ns`
    after pop 0, `update_ns` after the others. `row` is what the step records say of each step.
    """

    pops: int
    first_pop_ns: int
    periods: list[Run]
    first_start_ns: int
    durations: list[Run]
    first_update_ns: int
    update_ns: int
    row: StepRow

    def pop_ns(self, index: int) -> int:
        """When pop `index` (from 0) happens."""
        time_ns, left = self.first_pop_ns, index
        for steps, first_ns, increment_ns in self.periods:
            taken = steps if steps < left else left
            time_ns += taken * first_ns + increment_ns * (taken * (taken - 1) // 2)
            left -= taken
            if not left:
                break
        return time_ns

    def duration_ns(self, index: int) -> int:
        """The device time of the leap's step `index`."""
        return next(clip_runs(self.durations, index, 1)).first_ns

    def first_pop_seeing(self, time_ns: int) -> int:
        """The first pop after which the engine's look at its inputs is not before `time_ns`; else the last."""
        if self.first_pop_ns + self.first_update_ns >= time_ns:
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
