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
from ttsim_des.engine.growth_batch import GrowthBatch
from ttsim_des.engine.kv_cache import KVCacheManager
from ttsim_des.engine.request import DECODING, DRAINING, ELSEWHERE, JOINING, PREFILLING, Outcome, Request, Scheduled
from ttsim_des.records.tables import pack_gap

_Heap = list[tuple[int, int, Request]]
"""(step, serial, request); entries of requests that have left or were admitted again since are dead."""


class Ledger:
    """Who prefills, who decodes, whose last token is in flight; and when each of them changes.

    `launched` and `popped` are the indices of the last steps that went to the device and came back. The gaps between
    tokens go to `gap_rows`, lines of the table of token gaps.
    """

    def __init__(self, config: EngineConfig, kv: KVCacheManager, gap_rows: bytearray) -> None:
        self.batch: DecodeBatch | GrowthBatch = DecodeBatch(config.block_size)
        self.prefilling: list[Request] = []
        self.draining: list[Request] = []
        self.outcomes: dict[int, Outcome] = {}
        self.launched = self.popped = -1
        self.last_pop_ns = -2  # not what a request without a token has
        self._kv, self._max_model_len, self._gap_rows = kv, config.max_model_len, gap_rows
        self._depth = 2 if config.async_scheduling else 1
        self.joining: list[Request] = []
        self.ends: _Heap = []
        self.skips: _Heap = []
        self.tight: _Heap = []

    def cap(self, request: Request) -> int:
        """Output tokens at which a request ends if it does not stop by itself."""
        room = self._max_model_len - request.prompt_tokens
        return request.max_tokens if request.max_tokens < room else room

    # ---- entering ----

    def enter_prefill(self, request: Request) -> None:
        """A request computes its known tokens, chunk by chunk."""
        request.place = PREFILLING
        self.prefilling.append(request)

    def enter_decode(self, request: Request, entry: Scheduled) -> None:
        """The step just launched computes a request's last known token: it decodes from the next one on."""
        step = self.launched
        if request.place is PREFILLING:
            self.prefilling.remove(request)
        request.base = request.num_computed_tokens - step
        request.token_zero = step - request.num_output_tokens - 1
        request.join_step = step
        if request.max_tokens:
            request.place = JOINING
            self.joining.append(request)
        else:
            request.place = DRAINING
            request.last_step = step
        self._watch(request)

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
            request.place = DRAINING
            self._watch(request)
            return False
        if placeholders and num_output + placeholders >= self.cap(request):
            request.place = DRAINING
            request.last_step = step - 1
            self.draining.append(request)
        elif wanted == 1 and num_output + placeholders and placeholders == self._depth - 1:
            self.batch.add(request, step)
        else:  # also one that was left out of a step: it computes one known token like any other chunk
            self.enter_prefill(request)
            return False
        self._watch(request)
        return request.last_token_ns != self.last_pop_ns

    def _watch(self, request: Request) -> None:
        """Put the steps in which something happens to a request on the heaps."""
        outcome, cap, zero = self.outcomes[request.request_id], request.max_tokens, request.token_zero
        if cap > self._max_model_len - request.prompt_tokens:
            cap = self._max_model_len - request.prompt_tokens
        stop = outcome.output_tokens
        if stop >= cap:
            stop = cap
            if self._depth > 1:
                heappush(self.skips, (zero + cap + 1, request.serial, request))
        heappush(self.ends, (zero + stop if request.max_tokens else request.join_step, request.serial, request))
        for milestone in outcome.milestones:
            if milestone < stop:
                heappush(self.ends, (zero + milestone, request.serial, request))

    # ---- from step to step ----

    def open_step(self, step: int) -> None:
        """From `step` on those that joined decode, and those whose last token is certainly in flight do not."""
        if self.joining:
            add = self.batch.add
            for request in self.joining:
                if request.place is JOINING:
                    add(request, step)
            self.joining.clear()
        skips = self.skips
        while skips and skips[0][0] <= step:
            _, serial, request = heappop(skips)
            if request.place is DECODING and request.serial == serial:
                self.batch.remove(request, DRAINING, step - 1)
                request.last_step = step - 1
                self.draining.append(request)

    def stamp(self, firsts: Sequence[Request], now_ns: int) -> None:
        """Everybody in a step gets a token; only `firsts`, who got none a step ago, are looked at."""
        followers = self.batch.seqs + len(self.draining)
        if not firsts:
            if followers:
                self._gap_rows += pack_gap(now_ns, 1, now_ns - self.last_pop_ns, 0, followers, 0)
            self.last_pop_ns = now_ns
            return
        waited: dict[int, int] = {}
        is_async = self._depth > 1
        for request in firsts:
            if request.place is ELSEWHERE:
                continue
            if is_async or request.place is DECODING:
                followers -= 1
            if request.first_token_ns < 0:
                request.first_token_ns = now_ns
            else:
                gap_ns = now_ns - request.last_token_ns
                waited[gap_ns] = waited.get(gap_ns, 0) + 1
            request.last_token_ns = now_ns
        if followers:
            gap_ns = now_ns - self.last_pop_ns
            waited[gap_ns] = waited.get(gap_ns, 0) + followers
        for gap_ns, seqs in waited.items():
            self._gap_rows += pack_gap(now_ns, 1, gap_ns, 0, seqs, 0)
        self.last_pop_ns = now_ns

    def stamp_one(self, request: Request, now_ns: int, tokens: int = 1) -> None:
        """A request gets a token now, or several."""
        if request.first_token_ns < 0:
            request.first_token_ns = now_ns
        else:
            self._gap_rows += pack_gap(now_ns, 1, now_ns - request.last_token_ns, 0, 1, tokens - 1)
        request.last_token_ns = now_ns

    def pops_until_change(self, launched: int) -> int:
        """Pops up to and including the one with which something happens to a decoding request by itself.

        `launched`: the last step that will have been launched before the first of them.
        """
        ends, skips = self.ends, self.skips
        step, serial, request = ends[0]
        while request.serial != serial or request.place is ELSEWHERE:
            heappop(ends)
            step, serial, request = ends[0]
        pops = step - self.popped
        while skips:
            step, serial, request = skips[0]
            if request.serial == serial and request.place is not ELSEWHERE:
                launches = step - launched
                return launches if launches < pops else pops
            heappop(skips)
        return pops

    def is_tight(self, step: int) -> bool:
        """Whether `step` must be planned request by request although nothing lacks; only with drafts."""
        return bool(self.tight) and self.tight[0][0] <= step

    def output_at_last_pop(self, request: Request) -> int:
        """Output tokens of a decoding request now."""
        return self.popped - request.token_zero if request.max_tokens else 0

    def entry_in_flight(self, request: Request) -> Scheduled:
        """A decoding request's part in the last step launched."""
        return Scheduled(request, 1, request.base + self.launched - 1, True, request.preemptions, True)

    def num_output_tokens(self, request: Request, more_pops: int) -> int:
        """Output tokens of a decoding request after `more_pops` more pops than were taken (-1: before the last one)."""
        return max(self.popped + more_pops, request.join_step - 1) - request.token_zero

    # ---- leaving ----

    def settle(self, request: Request) -> None:
        """Write a request's counts out and take it off the books; nothing where it is not on them."""
        if request.place is not ELSEWHERE:
            self._kv.register(request, self.write_out(request))

    def write_out(self, request: Request) -> int:
        """Take a request off the books; returns of how many of its tokens the full blocks are to be named."""
        place, launched, depth, popped = request.place, self.launched, self._depth, self.popped
        if place is DECODING:
            last_step = launched
            self.batch.remove(request, ELSEWHERE, launched)
        else:
            request.place = ELSEWHERE
            if place is PREFILLING:
                self.prefilling.remove(request)
                return 0
            if place is JOINING:
                last_step = request.join_step
            else:
                last_step = request.last_step
                if not request.max_tokens:
                    return 0
                self.draining.remove(request)
        join_step = request.join_step
        if popped >= join_step:
            request.last_token_ns = self.last_pop_ns
        else:
            popped = join_step - 1
        computed = request.base + last_step
        request.computed_tokens += computed - request.num_computed_tokens
        request.num_computed_tokens = computed
        request.num_output_tokens = popped - request.token_zero
        if depth > 1:
            request.num_output_placeholders = last_step - popped
        blocks = -(-computed // self._kv.block_size)
        if blocks > request.num_blocks:
            request.num_blocks = blocks
        # Named are the tokens known when its last step was planned, and at each pop those computed by then.
        named = last_step - depth if last_step - depth > popped - 1 else popped - 1
        return request.prompt_tokens + named - request.token_zero

    def clear(self) -> None:
        """Everybody has been settled: forget what was to happen when."""
        self.ends, self.skips, self.tight = [], [], []
        self.batch.clear()
