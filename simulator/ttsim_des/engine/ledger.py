"""The books of an engine's running requests, by step index.

Steps are numbered as they are launched. A sequence that decodes is not touched from step to step: the k-th of its
tokens comes back with step `token_zero + k`, its context in step e is `base + e`, and heaps know in which steps it
passes a milestone, ends, or is left out because its last token is in flight. `settle` writes a request's counts out
when somebody needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from ttsim_des.engine.batch import DecodeBatch
from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.kv_cache import KVCacheManager
from ttsim_des.engine.request import Outcome, Place, Request

_Heap = list[tuple[int, int, Request]]
"""(step, serial, request); entries of requests that have left or were admitted again since are dead."""


class Ledger:
    """Who prefills, who decodes, whose last token is in flight; and when each of them changes.

    `launched` and `popped` are the indices of the last steps that went to the device and came back.
    """

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        self.batch = DecodeBatch(config.block_size)
        self.prefilling: list[Request] = []
        self.draining: list[Request] = []
        self.outcomes: dict[int, Outcome] = {}
        self.launched = self.popped = -1
        self.last_pop_ns = -1
        self._kv, self._max_model_len = kv, config.max_model_len
        self._depth = 2 if config.async_scheduling else 1
        self._joining: list[Request] = []
        self._ends: _Heap = []
        self._skips: _Heap = []

    def cap(self, request: Request) -> int:
        """Output tokens at which a request ends if it does not stop by itself."""
        return min(request.max_tokens, self._max_model_len - request.prompt_tokens)

    # ---- entering ----

    def enter_prefill(self, request: Request) -> None:
        """A request computes its known tokens, chunk by chunk."""
        request.place = Place.PREFILLING
        self.prefilling.append(request)

    def enter_decode(self, request: Request) -> None:
        """The step just launched computes a request's last known token: it decodes from the next one on."""
        step = self.launched
        if request.place is Place.PREFILLING:
            self.prefilling.remove(request)
        request.base = request.num_computed_tokens - step
        request.token_zero = step - request.num_output_tokens - 1
        request.join_step = step
        if request.max_tokens:
            self._watch(request, Place.JOINING)
            self._joining.append(request)
        else:
            self._watch(request, Place.DRAINING)
            request.last_step = step

    def resume(self, request: Request) -> bool:
        """Take a running request with written-out counts on the books before the next step is planned.

        Returns whether it gets its next token with others but had none in the last step.
        """
        step = self.launched + 1
        placeholders, num_output = request.num_output_placeholders, request.num_output_tokens
        wanted = request.num_tokens + placeholders - request.num_computed_tokens
        request.base = request.num_computed_tokens + 1 - step
        request.token_zero = step - 1 - num_output - placeholders
        request.join_step = step - placeholders
        if not request.max_tokens and not wanted:
            request.join_step = request.last_step = step - 1
            self._watch(request, Place.DRAINING)
            return False
        if placeholders and num_output + placeholders >= self.cap(request):
            self._watch(request, Place.DRAINING)
            request.last_step = step - 1
            self.draining.append(request)
        elif wanted == 1 and num_output + placeholders and placeholders == self._depth - 1:
            self._watch(request, Place.DECODING)
            self.batch.add(request)
        else:  # also one that was left out of a step: it computes one known token like any other chunk
            self.enter_prefill(request)
            return False
        return request.last_token_ns != self.last_pop_ns

    def _watch(self, request: Request, place: Place) -> None:
        """Put the steps in which something happens to a request on the heaps."""
        request.place = place
        outcome, cap = self.outcomes[request.request_id], self.cap(request)
        zero, serial = request.token_zero, request.serial
        num_final = min(outcome.output_tokens, cap)
        heappush(self._ends, (zero + num_final if request.max_tokens else request.join_step, serial, request))
        for milestone in outcome.milestones:
            if milestone < num_final:
                heappush(self._ends, (zero + milestone, serial, request))
        if self._depth > 1 and outcome.output_tokens >= cap:
            heappush(self._skips, (zero + cap + 1, serial, request))

    # ---- from step to step ----

    def open_step(self, step: int) -> None:
        """From `step` on those that joined decode, and those whose last token is certainly in flight do not."""
        for request in self._joining:
            if request.place is Place.JOINING:
                request.place = Place.DECODING
                self.batch.add(request)
        self._joining.clear()
        skips = self._skips
        while skips and skips[0][0] <= step:
            _, serial, request = heappop(skips)
            if request.place is Place.DECODING and request.serial == serial:
                self.batch.remove(request)
                request.place, request.last_step = Place.DRAINING, step - 1
                self.draining.append(request)

    def stamp(self, firsts: Sequence[Request], now_ns: int, gaps: dict[int, int]) -> None:
        """Everybody in a step gets a token; only `firsts`, who got none a step ago, are looked at."""
        followers = self.batch.seqs + len(self.draining)
        for request in firsts:
            if request.place is Place.ELSEWHERE:
                continue
            if self._depth > 1 or request.place is Place.DECODING:
                followers -= 1
            stamp_token(request, now_ns, gaps)
        if followers:
            gap_ns = now_ns - self.last_pop_ns
            gaps[gap_ns] = gaps.get(gap_ns, 0) + followers

    def take_due(self) -> list[tuple[int, Request]]:
        """(serial, request) of those to whom something happens with the step that has just come back."""
        due, ends, step = [], self._ends, self.popped
        while ends and ends[0][0] <= step:
            _, serial, request = heappop(ends)
            if request.serial == serial and request.place is not Place.ELSEWHERE:
                due.append((serial, request))
        return due

    def pops_until_change(self) -> int:
        """Pops up to and including the one with which something happens to a decoding request by itself."""
        _drop_dead(self._ends)
        pops = self._ends[0][0] - self.popped
        if self._depth > 1:
            _drop_dead(self._skips)
            if self._skips:
                return min(pops, self._skips[0][0] - self.launched)
        return pops

    def num_output_tokens(self, request: Request, more_pops: int) -> int:
        """Output tokens of a decoding request after `more_pops` more pops than were taken (-1: before the last one)."""
        return max(self.popped + more_pops, request.join_step - 1) - request.token_zero

    # ---- leaving ----

    def settle(self, request: Request) -> None:
        """Write a request's counts out and take it off the books; nothing where it is not on them."""
        place = request.place
        if place is Place.ELSEWHERE:
            return
        request.place = Place.ELSEWHERE
        if place is Place.PREFILLING:
            self.prefilling.remove(request)
            return
        if place is Place.JOINING:
            last_step = request.join_step
        elif place is Place.DECODING:
            last_step = self.launched
            self.batch.remove(request)
        else:
            last_step = request.last_step
            if not request.max_tokens:
                return
            self.draining.remove(request)
        popped = max(self.popped, request.join_step - 1)
        computed = request.base + last_step
        request.computed_tokens += computed - request.num_computed_tokens
        request.num_computed_tokens = computed
        request.num_output_tokens = popped - request.token_zero
        if self._depth > 1:
            request.num_output_placeholders = last_step - popped
        if self.popped >= request.join_step:
            request.last_token_ns = self.last_pop_ns
        request.num_blocks = max(request.num_blocks, self._kv.num_blocks(computed))
        # Named were the tokens known when its last step was planned, and at each pop those computed by then.
        named = max(last_step - self._depth, popped - 1) - request.token_zero
        self._kv.register(request, request.prompt_tokens + named)

    def clear(self) -> None:
        """Everybody has been settled: forget what was to happen when."""
        self._ends, self._skips = [], []
        self.batch.clear()


def _drop_dead(heap: _Heap) -> None:
    """Take entries of requests that have left since from the top of a heap."""
    while heap and (heap[0][2].serial != heap[0][1] or heap[0][2].place is Place.ELSEWHERE):
        heappop(heap)


def stamp_token(request: Request, now_ns: int, gaps: dict[int, int]) -> None:
    """A request gets a token now; `gaps` counts the time since its last one, if any."""
    if request.first_token_ns < 0:
        request.first_token_ns = now_ns
    else:
        gap_ns = now_ns - request.last_token_ns
        gaps[gap_ns] = gaps.get(gap_ns, 0) + 1
    request.last_token_ns = now_ns
