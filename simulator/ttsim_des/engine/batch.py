"""The sequences of a replica that decode, as sums: what a step needs to know of them, without touching any.

Steps have indices. A sequence that decodes in every step has context `base + e` in step e, so with the number of
sequences and the sum, the largest and the residues of their bases the shape of every coming step, and the
blocks that it takes, are known. Joining and leaving cost O(log batch).
"""

from __future__ import annotations

from heapq import heappop, heappush

from ttsim_des.engine.request import DECODING, Place, Request
from ttsim_des.latency.shape import StepShape
from ttsim_des.tuples import new_tuple


class DecodeBatch:
    """Sequences that compute one token in every step.

    A sequence takes a block in step e when what it has computed before fills its blocks: (base + e - 1) is a multiple
    of the block size. `phases[r]` counts the bases that are r modulo the block size.
    """

    def __init__(self, block_size: int) -> None:
        self.seqs = 0
        self._block_size = block_size
        self._base_sum = 0
        self.phases = [0] * block_size
        self._largest: list[tuple[int, int, Request]] = []

    def add(self, request: Request, step: int) -> None:
        """A sequence decodes from `step` on; `request.base` is set."""
        base = request.base
        request.place = DECODING
        self.seqs += 1
        self._base_sum += base
        self.phases[base % self._block_size] += 1
        heappush(self._largest, (-base, request.serial, request))

    def remove(self, request: Request, place: Place, launched: int) -> None:
        """A sequence no longer decodes, `launched` being the last step that it was in; it is in `place` from now on."""
        request.place = place
        self.seqs -= 1
        self._base_sum -= request.base
        self.phases[request.base % self._block_size] -= 1

    def clear(self) -> None:
        """Forget those that have left; only when nobody decodes. One that comes back does so with another base."""
        assert not self.seqs
        self._largest.clear()

    def shape(self, step: int) -> StepShape:
        """The shape of a step of these sequences alone, of which there is one at least."""
        seqs = self.seqs
        negative_base, serial, request = self._largest[0]
        while request.place is not DECODING or request.serial != serial:
            heappop(self._largest)
            negative_base, serial, request = self._largest[0]
        return new_tuple(StepShape, (seqs, self._base_sum + seqs * step, step - negative_base, (), seqs, 0, 0))

    def num_tokens(self, step: int) -> int:
        """Tokens that a step computes for these sequences."""
        return self.seqs

    def blocks_taken(self, step: int) -> int:
        """Blocks that a step takes."""
        return self.phases[(1 - step) % self._block_size]

    def blocks_taken_after(self, step: int, steps: int) -> int:
        """Blocks that the `steps` steps after `step` take."""
        block_size = self._block_size
        rest = steps % block_size
        taken = steps // block_size * self.seqs
        if rest:
            end = -step % block_size + 1  # behind the residue that takes a block in step + 1; then downwards
            if rest <= end:
                return taken + sum(self.phases[end - rest : end])
            return taken + sum(self.phases[:end]) + sum(self.phases[end - rest :])
        return taken

    def steps_within_blocks(self, step: int, free_blocks: int, limit: int) -> int:
        """How many steps after `step` (at most `limit`) the free blocks last for."""
        if self.seqs * -(-limit // self._block_size) <= free_blocks:
            return limit
        rounds = min(free_blocks // self.seqs, limit // self._block_size)
        steps, left = rounds * self._block_size, free_blocks - rounds * self.seqs
        while steps < limit:
            left -= self.phases[(-step - steps) % self._block_size]
            if left < 0:
                break
            steps += 1
        return steps
