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


def decode_runs(model: StepModel, shape: StepShape, steps: int) -> Iterator[Run]:
    """The durations of `steps` steps of a decode batch that begins with `shape`, as linear runs."""
    while steps > 0:
        run = model.decode_run(shape, steps)
        yield run
        steps -= run.steps
        shape = shape._replace(
            decode_ctx_sum=shape.decode_ctx_sum + run.steps * shape.decode_seqs,
            decode_ctx_max=shape.decode_ctx_max + run.steps,
        )


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


@dataclass(slots=True)
class Leap:
    """`pops` deliveries of one batch: the first at `first_pop_ns`, then at distances given by `periods`.

    `durations` are the device times of the steps scheduled in the leap (as many as pops), the first of which starts
    at `first_start_ns`.
    """

    pops: int
    first_pop_ns: int
    periods: list[Run]
    first_start_ns: int
    durations: list[Run]
    row: StepRow
    """What the step records say of each of these steps."""

    host_between_ns: int
    """Host time that the device waits between two of these steps."""

    def pop_ns(self, index: int) -> int:
        """When pop `index` (from 0) happens."""
        time_ns, left = self.first_pop_ns, index
        for run in self.periods:
            taken = min(run.steps, left)
            time_ns += series_sum(taken, run.first_ns, run.increment_ns)
            left -= taken
            if not left:
                break
        return time_ns

    def first_pop_not_before(self, time_ns: int) -> int:
        """The index of the first pop at or after `time_ns`; `pops - 1` when all earlier ones are before it."""
        low, high = 0, self.pops - 1
        while low < high:
            middle = (low + high) // 2
            if self.pop_ns(middle) >= time_ns:
                high = middle
            else:
                low = middle + 1
        return low
