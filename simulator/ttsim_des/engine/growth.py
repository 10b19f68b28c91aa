"""The course of a request that decodes with drafts, worked out in advance.

With speculation sequences do not advance in step: each has a curve of its own. It is added to the batch's sums when the
request joins and taken out when it leaves early (growth_batch.py), so no step has to look at every sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ttsim_des.engine.request import Request
from ttsim_des.engine.speculation import Drafting

IntArray = NDArray[np.int64]
_NONE: IntArray = np.zeros(0, dtype=np.int64)


class Growth:
    """Outputs, drafts, computed tokens and blocks of one request, step by step.

    Entry i of an array belongs to step `origin` - 1 + i. `outputs`: output tokens when that step is back, the last one
    uncut. `drafts` of each step, how many of them are `accepted`, and `extra`: those before the stop. `ends`: tokens
    that the scheduler counts as computed once it has planned that step (asynchronously as if the step before had all
    its drafts accepted). `blocks`: held from that step on.

    Decode steps are `origin` + 1 to `last_step`; step `finish_step` brings the last output. From `tight_step` on drafts
    may not fit below max_model_len (-1: they do). `is_expected`: the batch counts on what its steps will deliver.
    """

    __slots__ = (
        *("_drafts", "accepted", "before", "blocks", "ends", "even", "extra", "finish_step", "last_step", "origin"),
        *("is_expected", "outputs", "tight_step"),
    )

    def __init__(self, drafting: Drafting, origin: int, num_output: int, stop: int, given: tuple[int, ...], asked: int):
        """From `num_output` tokens after step `origin` until `stop`, with `asked` drafts a step.

        `given`: drafts of step `origin`, all rejected, and of the steps behind it as far as they are not as `asked`.
        `place` must follow.
        """
        first, known = [], num_output
        for number in given[1:]:
            if known < stop:
                first.append(1 + drafting.accepted(known, number) if number else 1)
                known += first[-1]
        increments, drafts = drafting.walk(known, stop, asked) if known < stop else (_NONE, None)
        fixed = len(first)
        steps = fixed + increments.size
        self.origin, self.finish_step, self.before = origin, origin + steps, given[0]
        accepted = np.empty(steps + 2, dtype=np.int64)
        accepted[:2] = 1
        if fixed:
            accepted[2 : 2 + fixed] = first
        accepted[2 + fixed :] = increments
        outputs = accepted.cumsum()
        outputs += num_output - 2
        self.outputs = outputs
        accepted -= 1
        self.accepted = self.extra = accepted
        if steps and outputs[-1] > stop:
            self.extra = accepted.copy()
            self.extra[-1] -= outputs[-1] - stop
        self.is_expected = False
        self.even, self._drafts = asked, _NONE
        if drafts is not None or len(given) > 1:
            self.even = -1
            self._drafts = np.full(steps + 3, asked, dtype=np.int64)
            self._drafts[0] = 0
            self._drafts[1 : 2 + fixed] = given[: 1 + fixed]
            if drafts is not None:
                self._drafts[2 + fixed : steps + 2] = drafts

    def place(self, request: Request, cap: int, is_async: bool, lookahead: int, block_size: int, max_len: int) -> None:
        """Work out what each step computes and holds for `request`, which may have `cap` output tokens."""
        outputs, drafts, steps = self.outputs, self._drafts, self.finish_step - self.origin
        prompt_tokens, even = request.prompt_tokens, self.even
        # Asynchronously the step behind the last is planned before anybody knows, unless only one token was missing.
        late = 1 if is_async and outputs[steps] + 1 < cap else 0
        size = steps + 2 + late
        self.last_step = self.finish_step + late
        ends = np.empty(size, dtype=np.int64)
        ends[0] = prompt_tokens + outputs[0]
        ends[1] = ends[0] + self.before
        if even >= 0 and is_async:
            np.add(outputs[: size - 2], prompt_tokens + 2 * even + 1, out=ends[2:])
            if size > 2:
                ends[2] += self.before - even
        elif even >= 0:
            np.add(outputs[1 : size - 1], prompt_tokens + even, out=ends[2:])
        else:
            if is_async:
                np.add(outputs[: size - 2], drafts[1 : size - 1], out=ends[2:])
                ends[2:] += drafts[2:size]
                ends[2:] += 1
            else:
                np.add(outputs[1 : size - 1], drafts[2:size], out=ends[2:])
            ends[2:] += prompt_tokens
        self.ends = ends
        self.tight_step = -1
        highest = int(ends[-1] if even >= 0 else ends.max())
        if highest >= max_len:
            tight = np.flatnonzero(ends[2:] >= max_len)
            if tight.size:
                self.tight_step = self.origin + 1 + int(tight[0])
        blocks = ends + (lookahead + block_size - 1)
        if highest + lookahead > max_len:
            np.minimum(blocks, max_len + block_size - 1, out=blocks)
        if block_size & (block_size - 1):
            blocks //= block_size
        else:  # as most, at a fifth of the price
            blocks >>= block_size.bit_length() - 1
        if even < 0:  # else no step reaches less far than the one before
            np.maximum.accumulate(blocks, out=blocks)
        if blocks[0] < request.num_blocks:
            np.maximum(blocks, request.num_blocks, out=blocks)
        self.blocks = blocks

    def drafts_at(self, index: int) -> int:
        """Drafts of the step that entry `index` belongs to."""
        if self.even >= 0:
            return self.before if index == 1 else self.even
        return int(self._drafts[index])

    def num_drafts(self, first: int, last: int) -> int:
        """Drafts of the steps of entries `first` to `last`, together."""
        if first > last:
            return 0
        if self.even >= 0:
            return (last - first + 1) * self.even + (self.before - self.even if first == 1 else 0)
        return int(self._drafts[first : last + 1].sum())

    def drafts_of(self, first: int, last: int) -> IntArray:
        """Drafts of each step of entries `first` to `last`, none of which is the origin."""
        return self._drafts[first : last + 1]

    def output_at(self, step: int) -> int:
        """Output tokens once `step` is back, uncut."""
        index = step - self.origin + 1
        return int(self.outputs[index if index < len(self.outputs) else -1])

    def step_reaching(self, tokens: int) -> int:
        """The step that brings output token number `tokens`."""
        return self.origin - 1 + int(self.outputs.searchsorted(tokens))
