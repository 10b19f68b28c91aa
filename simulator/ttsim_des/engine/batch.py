"""The sequences of a replica that decode, as sums: what a step needs to know of them, without touching any.

Steps have indices. A sequence that decodes in every step has context `base + e` in step e, so with the number of
sequences and the sum, the largest and the residues of their bases the shape of every coming step, and the
blocks that it takes, are known. Joining and leaving cost O(log batch).
"""

from __future__ import annotations

from heapq import heappop, heappush

from ttsim_des.engine.request import Request


class DecodeBatch:
    """Sequences that compute one token in every step.

    A sequence takes a block in step e when what it has computed before fills its blocks: (base + e - 1) is a multiple
    of the block size. `_phases[r]` counts the bases that are r modulo the block size.
    """

    def __init__(self, block_size: int) -> None:
        self.seqs = 0
        self._block_size = block_size
        self._base_sum = 0
        self._phases = [0] * block_size
        self._largest: list[tuple[int, int, Request]] = []

    def add(self, request: Request) -> None:
        """A sequence decodes from the next step on; `request.base` is set."""
        base = request.base
        self.seqs += 1
        self._base_sum += base
        self._phases[base % self._block_size] += 1
        request.is_decoding = True
        heappush(self._largest, (-base, request.serial, request))

    def remove(self, request: Request) -> None:
        """A sequence no longer decodes."""
        self.seqs -= 1
        self._base_sum -= request.base
        self._phases[request.base % self._block_size] -= 1
        request.is_decoding = False

    def clear(self) -> None:
        """Forget those that have left; only when nobody decodes. One that comes back does so with another base."""
        assert not self.seqs
        self._largest.clear()

    def ctx_sum(self, step: int) -> int:
        """The sum of contexts in a step, the step's own tokens included."""
        return self._base_sum + self.seqs * step

    def ctx_max(self, step: int) -> int:
        """The largest context in a step; 0 without sequences."""
        largest = self._largest
        while largest:
            _, serial, request = largest[0]
            if request.is_decoding and request.serial == serial:
                return request.base + step
            heappop(largest)
        return 0

    def blocks_taken(self, step: int) -> int:
        """Blocks that a step takes."""
        return self._phases[(1 - step) % self._block_size]

    def blocks_taken_after(self, step: int, steps: int) -> int:
        """Blocks that the `steps` steps after `step` take."""
        rounds, rest = divmod(steps, self._block_size)
        taken = rounds * self.seqs
        if rest:
            first = -step % self._block_size  # the residue that takes a block in step + 1; then downwards
            if rest <= first + 1:
                taken += sum(self._phases[first + 1 - rest : first + 1])
            else:
                taken += sum(self._phases[: first + 1]) + sum(self._phases[first + 1 - rest :])
        return taken

    def steps_within_blocks(self, step: int, free_blocks: int, limit: int) -> int:
        """How many steps after `step` (at most `limit`) the free blocks last for."""
        if self.seqs * -(-limit // self._block_size) <= free_blocks:
            return limit
        rounds = min(free_blocks // self.seqs, limit // self._block_size)
        steps, left = rounds * self._block_size, free_blocks - rounds * self.seqs
        while steps < limit:
            left -= self._phases[(-step - steps) % self._block_size]
            if left < 0:
                break
            steps += 1
        return steps
