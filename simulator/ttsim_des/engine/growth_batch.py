"""Many courses of requests that draft, as sums over steps: `DecodeBatch` for sequences that do not advance in step."""

from __future__ import annotations

import numpy as np

from ttsim_des.engine.growth import Growth, IntArray
from ttsim_des.engine.request import DECODING, Place, Request
from ttsim_des.latency.many_steps import ComingSteps
from ttsim_des.latency.shape import StepShape

_FIRST_STEPS = 1 << 12
_ROOM = 3
"""How many times as long as they have to be the arrays get, for what comes after."""


class GrowthBatch:
    """`DecodeBatch` for sequences that draft: the same questions, answered from sums over steps.

    `proposed`: drafts per sequence that a step leaves for the next one, while the batch stays as it is.
    """

    def __init__(self, block_size: int) -> None:
        self.seqs = 0
        self.proposed = 0
        self._origin = 0  # the step of the arrays' first entry
        self._sums = np.zeros((4, _FIRST_STEPS), dtype=np.int64)  # contexts, blocks taken, drafts; extra tokens
        self._longest = np.zeros(_FIRST_STEPS, dtype=np.int64)
        self._members: dict[int, Request] = {}
        self._uneven = 0  # members with steps of different drafts
        self._longest_is_known = True

    def add(self, request: Request, step: int) -> None:
        """A sequence decodes from `step` on."""
        assert request.drafts is not None
        growth = request.drafts.growth
        assert growth is not None
        request.place = DECODING
        request.drafts.first_step = step
        self.seqs += 1
        self._members[request.request_id] = request
        self._uneven += growth.even < 0
        first, last = step - growth.origin + 1, growth.last_step - growth.origin + 2
        if first >= last:
            return
        start, end = self._window(step, growth.last_step)
        sums, ends, blocks = self._sums, growth.ends[first:last], growth.blocks
        sums[0, start:end] += ends
        taken = sums[1, start:end]
        taken += blocks[first:last]
        taken -= blocks[first - 1 : last - 1]
        sums[2, start:end] += growth.even if growth.even >= 0 else growth.drafts_of(first, last - 1)
        if not growth.is_expected:
            growth.is_expected = True
            extra = growth.extra[first:]
            sums[3, start : start + extra.size] += extra
        if self._longest_is_known:
            longest = self._longest[start:end]
            np.maximum(longest, ends, out=longest)

    def remove(self, request: Request, place: Place, launched: int) -> None:
        """A sequence no longer decodes, `launched` being the last step that it was in; it is in `place` from now on."""
        assert request.drafts is not None
        growth = request.drafts.growth
        assert growth is not None
        request.place = place
        self.seqs -= 1
        del self._members[request.request_id]
        self._uneven -= growth.even < 0
        if growth.last_step > launched:
            self._take_out(growth, launched + 1)
            self._longest_is_known = False

    def clear(self) -> None:
        """Nothing to forget: those that have left are out of the sums."""
        assert not self.seqs

    def shape(self, step: int) -> StepShape:
        """The shape of a step of these sequences alone, of which there is one at least."""
        index = step - self._origin
        ctx_sum, _, drafts, _ = self._sums[:, index].tolist()
        longest = int(self._longest_from(step)[index])
        return StepShape(self.seqs, ctx_sum, longest, (), self.seqs + drafts, drafts, self.proposed)

    def coming_steps(self, step: int, steps: int) -> ComingSteps:
        """Sums of contexts, longest contexts and drafts of `steps` steps from `step` on."""
        start = step - self._origin
        end = start + steps
        ctx_sums, drafts = self._sums[0, start:end], self._sums[2, start:end]
        longest = self._longest_from(step)[start:end]
        if self._uneven:
            return ComingSteps.of(ctx_sums, longest, drafts)
        # With as many drafts in every step contexts only grow.
        return ComingSteps(ctx_sums, longest, drafts, int(ctx_sums[0]), int(ctx_sums[-1]), int(drafts[0]))

    def extra_tokens(self, step: int, steps: int) -> IntArray:
        """Accepted drafts that `steps` steps from `step` on deliver, beside one token for each sequence."""
        start = step - self._origin
        extra: IntArray = self._sums[3, start : start + steps]
        return extra

    def extra_tokens_of(self, step: int) -> int:
        """As `extra_tokens` of one step, which may lie behind everything that is known of (an empty batch's)."""
        index = step - self._origin
        return int(self._sums[3, index]) if index < self._longest.size else 0

    def expect(self, request: Request, step: int, sign: int) -> None:
        """Count what a sequence's steps deliver from `step` on, or (-1) no longer."""
        assert request.drafts is not None
        growth = request.drafts.growth
        assert growth is not None
        growth.is_expected = True
        first = max(step - growth.origin + 1, 2)
        if first < growth.extra.size:
            start, end = self._window(first + growth.origin - 1, growth.finish_step)
            self._sums[3, start:end] += sign * growth.extra[first:]

    def num_tokens(self, step: int) -> int:
        """Tokens that a step computes for these sequences."""
        return self.seqs + int(self._sums[2, step - self._origin]) if self.seqs else 0

    def blocks_taken(self, step: int) -> int:
        """Blocks that a step takes."""
        return int(self._sums[1, step - self._origin]) if self.seqs else 0

    def blocks_taken_after(self, step: int, steps: int) -> int:
        """Blocks that the `steps` steps after `step` take."""
        start = step + 1 - self._origin
        return int(np.add.reduce(self._sums[1, start : start + steps]))

    def steps_within_blocks(self, step: int, free_blocks: int, limit: int) -> int:
        """How many steps after `step` (at most `limit`) the free blocks last for."""
        start = step + 1 - self._origin
        taken = self._sums[1, start : start + limit]
        if np.add.reduce(taken) <= free_blocks:
            return int(taken.size)
        return int(taken.cumsum().searchsorted(free_blocks, side="right"))

    def steps_alike(self, step: int, limit: int) -> int:
        """How many steps from `step` on, at most `limit`, verify equally many drafts."""
        start = step - self._origin
        drafts = self._sums[2, start : start + limit]
        others = np.flatnonzero(drafts != drafts[0])
        return int(others[0]) if others.size else limit

    def _take_out(self, growth: Growth, step: int) -> None:
        """Take a curve out of the sums from `step` on."""
        first, last = step - growth.origin + 1, growth.last_step - growth.origin + 2
        start, end = self._window(step, growth.last_step)
        sums = self._sums
        sums[0, start:end] -= growth.ends[first:last]
        sums[1, start:end] -= growth.blocks[first:last]
        sums[1, start:end] += growth.blocks[first - 1 : last - 1]
        sums[2, start:end] -= growth.even if growth.even >= 0 else growth.drafts_of(first, last - 1)

    def _lengthen(self, growth: Growth, step: int) -> None:
        first, last = step - growth.origin + 1, growth.last_step - growth.origin + 2
        if first < last:
            start, end = self._window(step, growth.last_step)
            longest = self._longest[start:end]
            np.maximum(longest, growth.ends[first:last], out=longest)

    def _longest_from(self, step: int) -> IntArray:
        """Longest contexts, right from `step` on; worked out anew when a sequence has left early."""
        if not self._longest_is_known:
            self._longest[step - self._origin :] = 0
            self._longest_is_known = True
            for request in self._members.values():
                assert request.drafts is not None
                assert request.drafts.growth is not None
                self._lengthen(request.drafts.growth, max(step, request.drafts.first_step))
        return self._longest

    def _window(self, step: int, last_step: int) -> tuple[int, int]:
        """Where the steps lie in the arrays, which move on or grow where they must; steps before `step` - 8 go."""
        size = self._longest.size
        if last_step - self._origin >= size:
            keep_from = max(0, step - 8 - self._origin)
            needed = last_step - self._origin - keep_from + 1
            larger = max(size, _ROOM * needed)
            kept = min(size - keep_from, larger)
            sums, longest = np.zeros((4, larger), dtype=np.int64), np.zeros(larger, dtype=np.int64)
            if kept > 0:
                sums[:, :kept] = self._sums[:, keep_from : keep_from + kept]
                longest[:kept] = self._longest[keep_from : keep_from + kept]
            self._sums, self._longest, self._origin = sums, longest, self._origin + keep_from
        return step - self._origin, last_step - self._origin + 1
