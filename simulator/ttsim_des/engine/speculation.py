"""Speculative decoding as the engine sees it: how many tokens are drafted, and what becomes of them.

The scheduler reads `SpeculationConfig` and a request's `DraftState`. `Drafting` is the world's knowledge of one
request: what the drafter would propose and the model accept at each of its output positions, drawn before it starts. A
draw belongs to an output position, not to a step: another number of drafts, or a restart after a preemption, meets the
same luck.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ttsim_des.engine.growth import Growth

IntArray = NDArray[np.int64]
_TWO_32 = 1 << 32


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """What the scheduler must know of the drafter.

    `num_lookahead_tokens`: positions beyond a step's tokens for which the drafter needs KV blocks (K where it writes KV
    of its own, else 0). `draft_slots`: by so much a sequence lowers the second token budget beside its tokens.
    `by_batch_size`: (n, drafts) ascending in n: what a step of at most n sequences leaves per sequence for the next
    one; the last ones hold beyond. Empty: always `num_speculative_tokens`.
    """

    num_speculative_tokens: int
    num_lookahead_tokens: int = 0
    draft_slots: int = 0
    by_batch_size: tuple[tuple[int, int], ...] = ()

    def num_drafts_after(self, num_seqs: int) -> int:
        """Drafts per sequence that a step of `num_seqs` sequences leaves for the next one."""
        if not self.by_batch_size:
            return self.num_speculative_tokens
        return next((drafts for most, drafts in self.by_batch_size if num_seqs <= most), self.by_batch_size[-1][1])


class Drafting(Protocol):
    """What a request's drafts would meet, by the number of output tokens known when they are made."""

    def drafts(self, num_output: int, asked: int) -> int:
        """Drafts made behind `num_output` tokens when `asked` are wanted."""
        ...

    def accepted(self, num_output: int, drafts: int) -> int:
        """How many of the `drafts` behind `num_output` tokens are taken."""
        ...

    def walk(self, num_output: int, stop: int, asked: int) -> tuple[IntArray, IntArray | None]:
        """Tokens of each step from `num_output` until `stop` tokens, the last uncut; and drafts, if not as asked."""
        ...


class TabledDrafting:
    """`Drafting` position by position.

    `accepts[p]`: how many drafts in a row the model takes behind p output tokens; `proposes[p]`: how many the drafter
    has to offer there (None: as many as it is asked for). One byte each, for every p below the output's length.
    """

    __slots__ = ("accepts", "proposes")

    def __init__(self, accepts: bytes, proposes: bytes | None = None) -> None:
        self.accepts, self.proposes = accepts, proposes

    def drafts(self, num_output: int, asked: int) -> int:
        """See `Drafting`."""
        return asked if self.proposes is None else min(asked, self.proposes[num_output])

    def accepted(self, num_output: int, drafts: int) -> int:
        """See `Drafting`."""
        return min(drafts, self.accepts[num_output])

    def walk(self, num_output: int, stop: int, asked: int) -> tuple[IntArray, IntArray | None]:
        """See `Drafting`."""
        known, jumps = num_output, bytearray()
        append = jumps.append
        if self.proposes is None:
            to_jump = self.accepts.translate(_jumps(asked))
            while known < stop:
                jump = to_jump[known]
                append(jump)
                known += jump
            return _integers(jumps), None
        drafts = bytearray()
        while known < stop:
            number = min(asked, self.proposes[known])
            jump = 1 + min(number, self.accepts[known])
            drafts.append(number)
            append(jump)
            known += jump
        return _integers(jumps), _integers(drafts)


class RunDrafting:
    """`Drafting` where a draft is right or wrong by its position alone and there is always one to offer.

    `wrong`: the positions whose drafts would be wrong, ascending, the last at or behind the output's end. Between two
    of them lies a run of right ones, which is taken in steps of drafts and one token. A step takes at most `most`
    drafts, however many are verified (trees).
    """

    __slots__ = ("most", "wrong")

    def __init__(self, wrong: IntArray, most: int) -> None:
        self.wrong, self.most = wrong, most

    def drafts(self, num_output: int, asked: int) -> int:
        """See `Drafting`."""
        return asked

    def accepted(self, num_output: int, drafts: int) -> int:
        """See `Drafting`."""
        return min(drafts, self.most, int(self.wrong[self.wrong.searchsorted(num_output)]) - num_output)

    def walk(self, num_output: int, stop: int, asked: int) -> tuple[IntArray, IntArray | None]:
        """See `Drafting`."""
        longest = min(asked, self.most) + 1
        first, end = self.wrong.searchsorted((num_output, stop - 1)).tolist()
        ends = self.wrong[first : end + 1]
        rights = np.empty_like(ends)
        rights[0] = ends[0] - num_output
        np.subtract(ends[1:], ends[:-1], out=rights[1:])
        rights[1:] -= 1
        # A run of r right drafts takes r // longest whole steps and one that meets the wrong one.
        whole = rights * (_TWO_32 // longest + 1)  # divided by multiplying: exact below 2**32 / longest
        whole >>= 32
        rights -= whole * longest
        whole += 1
        # The last run may go on beyond the stop: it ends with the whole step that gets there, if one does.
        missing = stop - (int(ends[-2]) + 1 if end > first else num_output)
        steps = -(-missing // longest)
        if steps < whole[-1]:
            whole[-1], rights[-1] = steps, longest - 1
        last = whole.cumsum()
        jumps = np.full(int(last[-1]), longest, dtype=np.int64)
        last -= 1
        rights += 1
        jumps[last] = rights
        return jumps, None


def _integers(values: bytearray) -> IntArray:
    return np.frombuffer(values, dtype=np.uint8).astype(np.int64)


@cache
def _jumps(asked: int) -> bytes:
    """From the drafts that would be taken to the tokens of a step with `asked` drafts."""
    return bytes(1 + min(taken, asked) for taken in range(256))


class DraftState:
    """A request's part in speculation, as the engine keeps it.

    `num_drafts` wait to be verified in its next step; `mid_prefill`: the last step left known tokens uncomputed (vLLM's
    is_prefill_chunk). The rest is for the records: `steps` with drafts, `draft_tokens` in them, of which `accepted`
    were taken (a stop within them aside) and `rejected` computed in vain; `trimmed`: accepted beyond the stop.
    """

    __slots__ = (
        *("accepted", "draft_tokens", "first_step", "growth", "is_padded", "last_tokens", "mid_prefill", "num_drafts"),
        *("rejected", "steps", "trimmed"),
    )

    def __init__(self) -> None:
        self.num_drafts = 0
        self.mid_prefill = False
        self.is_padded = False
        """The drafts of its last step were padding."""
        self.growth: Growth | None = None
        """While it decodes with others."""
        self.first_step = 0
        """Its first decode step on the books."""
        self.last_tokens = 1
        """What its last delivery brought, once it is off the books."""
        self.steps = self.draft_tokens = self.accepted = self.rejected = self.trimmed = 0
