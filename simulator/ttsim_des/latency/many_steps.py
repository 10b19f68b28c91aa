"""The times of many steps of a batch that drafts, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ttsim_des.latency.shape import StepModel, StepShape

IntArray = NDArray[np.int64]
Times = tuple[IntArray, NDArray[np.bool_] | bool]
"""Nanoseconds of each step, and whether it lies in the measured domain (one value: all do, or none)."""


class ComingSteps(NamedTuple):
    """Steps of one decode batch: with drafts sequences do not advance in step, so each has numbers of its own.

    `low` and `high` bound the sums of contexts. `drafts`: draft tokens of every step, -1 where they differ.
    """

    ctx_sums: IntArray
    ctx_maxs: IntArray
    draft_tokens: IntArray
    low: int
    high: int
    drafts: int

    @classmethod
    def of(cls, ctx_sums: IntArray, ctx_maxs: IntArray, draft_tokens: IntArray) -> ComingSteps:
        """Bounds and evenness looked up."""
        drafts = int(draft_tokens[0])
        is_even = bool(np.logical_and.reduce(draft_tokens == drafts))
        low, high = int(np.minimum.reduce(ctx_sums)), int(np.maximum.reduce(ctx_sums))
        return cls(ctx_sums, ctx_maxs, draft_tokens, low, high, drafts if is_even else -1)


@runtime_checkable
class ManyStepsModel(Protocol):
    """A step model that evaluates many steps faster than one by one."""

    def draft_steps(self, shape: StepShape, steps: ComingSteps) -> Times:
        """What `step_ns` and `in_domain` say of steps of one decode batch, `shape` being the first.

        Sequences and `proposed` are the same in all of them.
        """
        ...


def many_steps(model: StepModel) -> Callable[[StepShape, ComingSteps], Times]:
    """`ManyStepsModel.draft_steps` of any model."""
    if isinstance(model, ManyStepsModel):
        return model.draft_steps

    def one_by_one(shape: StepShape, steps: ComingSteps) -> Times:
        seqs, proposed = shape.decode_seqs, shape.proposed
        shapes = [
            StepShape(seqs, ctx_sum, ctx_max, (), seqs + drafts, drafts, proposed)
            for ctx_sum, ctx_max, drafts in zip(*(column.tolist() for column in steps[:3]), strict=True)
        ]
        times_ns = np.array([model.step_ns(each) for each in shapes], dtype=np.int64)
        return times_ns, np.array([model.in_domain(each) for each in shapes], dtype=np.bool_)

    return one_by_one
