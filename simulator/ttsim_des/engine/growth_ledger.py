"""The books of an engine whose requests draft: as `Ledger`, by curves instead of straight lines."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.growth import Growth
from ttsim_des.engine.growth_batch import GrowthBatch
from ttsim_des.engine.kv_cache import KVCacheManager
from ttsim_des.engine.ledger import Ledger
from ttsim_des.engine.request import DECODING, DRAINING, ELSEWHERE, JOINING, PREFILLING, Request, Scheduled
from ttsim_des.engine.speculation import SpeculationConfig
from ttsim_des.records.recorder import DraftCounts
from ttsim_des.records.tables import pack_gap


class GrowthLedger(Ledger):
    """`asked`: drafts per sequence that the step after the last one launched verifies, and those behind it."""

    def __init__(
        self,
        config: EngineConfig,
        speculation: SpeculationConfig,
        kv: KVCacheManager,
        gap_rows: bytearray,
        counts: DraftCounts,
    ) -> None:
        super().__init__(config, kv, gap_rows)
        self.growing = self.batch = GrowthBatch(config.block_size)
        self.asked = speculation.num_speculative_tokens
        self._lookahead = speculation.num_lookahead_tokens
        self._counts = counts

    def enter_decode(self, request: Request, entry: Scheduled) -> None:
        """The step just launched computes a request's last known token: it decodes from the next one on."""
        if not request.max_tokens:
            super().enter_decode(request, entry)
            return
        step = self.launched
        if request.place is PREFILLING:
            self.prefilling.remove(request)
        request.join_step = step
        request.place = JOINING
        self.joining.append(request)
        assert request.drafts is not None
        if entry.is_decode:  # it was left out of a step
            self._grow(request, step - 1, request.num_output_tokens, (0, entry.num_drafts))
        else:
            self._grow(request, step, request.num_output_tokens + 1, (entry.num_drafts,))
        request.drafts.first_step = step + 1

    def resume(self, request: Request) -> bool:
        """Take a running request with written-out counts on the books before the next step is planned; see `Ledger`."""
        if not request.max_tokens:
            return super().resume(request)
        assert request.drafts is not None
        step, drafts = self.launched + 1, request.drafts.num_drafts
        placeholders, num_output = request.num_output_placeholders, request.num_output_tokens
        flying = 1 if placeholders else 0
        wanted = request.num_tokens + drafts + placeholders - request.num_computed_tokens
        drafting = self.outcomes[request.request_id].drafting
        assert drafting is not None
        is_draining = placeholders > 0 and num_output + 1 >= self.cap(request)
        expected = self.asked if self._depth > 1 or not num_output else drafting.drafts(num_output, self.asked)
        decodes = num_output + flying and flying == self._depth - 1 and not request.drafts.mid_prefill
        if not is_draining and not (decodes and wanted == 1 + drafts and drafts == expected):
            self.enter_prefill(request)  # also one that was left out of a step: it computes like any other chunk
            return False
        given = (0, placeholders - 1) if flying else (0,)
        request.join_step = step - flying
        if flying and request.drafts.is_padded:  # what is in flight was padding
            self._grow(request, step - 1, num_output + 1, given[1:])
        else:
            self._grow(request, step - 1 - flying, num_output, given)
        request.drafts.first_step = step
        if is_draining:
            request.place = DRAINING
            request.last_step = step - 1
            self.draining.append(request)
        else:
            self.batch.add(request, step)
        return request.last_token_ns != self.last_pop_ns

    def _grow(self, request: Request, origin: int, num_output: int, given: tuple[int, ...]) -> None:
        """Work out a request's course and put the steps in which something happens to it on the heaps."""
        outcome, serial, is_async = self.outcomes[request.request_id], request.serial, self._depth > 1
        assert outcome.drafting is not None
        assert request.drafts is not None
        stop = self._stop(request)
        growth = request.drafts.growth = Growth(outcome.drafting, origin, num_output, stop, given, self.asked)
        growth.place(request, request.max_tokens, is_async, self._lookahead, self._kv.block_size, self._max_model_len)
        heappush(self.ends, (growth.finish_step, serial, request))
        for milestone in outcome.milestones:
            if milestone < stop:
                heappush(self.ends, (growth.step_reaching(milestone), serial, request))
        if is_async and growth.last_step == growth.finish_step:
            heappush(self.skips, (growth.finish_step + 1, serial, request))
        if len(given) > 1:  # a step on its way brings drafts; else the batch counts on them when the request joins it
            self.growing.expect(request, request.join_step, 1)
        if growth.tight_step >= 0:
            heappush(self.tight, (growth.tight_step, serial, request))

    def stamp(self, firsts: Sequence[Request], now_ns: int) -> None:
        """Everybody in a step gets a token and the drafts accepted before it; see `Ledger`."""
        extra = self.growing.extra_tokens_of(self.popped)
        followers = self.batch.seqs + len(self.draining)
        waited: dict[int, tuple[int, int]] = {}
        for request in firsts:
            if request.place is ELSEWHERE:
                continue
            if self._depth > 1 or request.place is DECODING:
                followers -= 1
            if request.first_token_ns < 0:
                request.first_token_ns = now_ns
            else:
                gap_ns = now_ns - request.last_token_ns
                own = self._extra_now(request)
                seqs, tokens = waited.get(gap_ns, (0, 0))
                waited[gap_ns] = seqs + 1, tokens + own
                extra -= own
            request.last_token_ns = now_ns
        if followers:
            gap_ns = now_ns - self.last_pop_ns
            seqs, tokens = waited.get(gap_ns, (0, 0))
            waited[gap_ns] = seqs + followers, tokens + extra
        for gap_ns, (seqs, tokens) in waited.items():
            self._gap_rows += pack_gap(now_ns, 1, gap_ns, 0, seqs, tokens)
        self.last_pop_ns = now_ns

    def _extra_now(self, request: Request) -> int:
        """Drafts accepted in the step that has just come back."""
        assert request.drafts is not None
        assert request.drafts.growth is not None
        index = self.popped - request.drafts.growth.origin + 1
        return int(request.drafts.growth.extra[index]) if index > 1 else 0

    def is_tight(self, step: int) -> bool:
        """Whether somebody's drafts may not fit below max_model_len in `step`."""
        tight = self.tight
        while tight and tight[0][0] <= step:
            _, serial, request = tight[0]
            if request.place is DECODING and request.serial == serial:
                return True
            heappop(tight)
        return False

    def pops_until_change(self, launched: int) -> int:
        """As in `Ledger`; at a step that `is_tight` nothing goes on by itself either."""
        pops = super().pops_until_change(launched)
        while self.tight:
            step, serial, request = self.tight[0]
            if request.place is not ELSEWHERE and request.serial == serial:
                return min(pops, step - launched)
            heappop(self.tight)
        return pops

    def num_output_tokens(self, request: Request, more_pops: int) -> int:
        """Output tokens of a decoding request after `more_pops` more pops than were taken (-1: before the last one)."""
        if not request.max_tokens:
            return super().num_output_tokens(request, more_pops)
        assert request.drafts is not None
        assert request.drafts.growth is not None
        output = request.drafts.growth.output_at(max(self.popped + more_pops, request.join_step - 1))
        return min(output, self._stop(request))

    def output_at_last_pop(self, request: Request) -> int:
        """Output tokens of a decoding request now."""
        return self.num_output_tokens(request, 0) if request.max_tokens else 0

    def entry_in_flight(self, request: Request) -> Scheduled:
        """A decoding request's part in the last step launched."""
        if not request.max_tokens:
            return super().entry_in_flight(request)
        assert request.drafts is not None
        assert request.drafts.growth is not None
        growth = request.drafts.growth
        index = self.launched - growth.origin + 1
        drafts, end = growth.drafts_at(index), int(growth.ends[index])
        is_decode = index > 1  # else its known tokens are computed there, and padding
        return Scheduled(request, 1 + drafts, end - 1 - drafts, True, request.preemptions, is_decode, drafts)

    def write_out(self, request: Request) -> int:
        """Take a request off the books; returns of how many of its tokens the full blocks are to be named."""
        state = request.drafts
        if request.place is PREFILLING or not request.max_tokens:
            return super().write_out(request)
        assert state is not None
        assert state.growth is not None
        growth, origin, first_pop = state.growth, state.growth.origin, request.join_step
        if growth.is_expected and growth.finish_step > self.popped:  # it leaves early
            self.growing.expect(request, max(self.popped + 1, first_pop), -1)
        last = self._leave(request) - origin + 1
        state.growth = None
        known = first_pop - origin
        if self.popped >= first_pop:
            request.last_token_ns = self.last_pop_ns
            known = self.popped - origin + 1
            self._count(request, growth, first_pop - origin + 1, known)
            state.last_tokens = 1 + int(growth.extra[known])
        first = state.first_step - origin + 1
        if last >= first:
            request.computed_tokens += last - first + 1 + growth.num_drafts(first, last)
        if growth.blocks[last] > request.num_blocks:
            request.num_blocks = int(growth.blocks[last])
        output = self._write_counts(request, growth, known, last)
        if last < first and self.popped < first_pop:
            return 0  # nothing has happened since it came on the books
        # Named are the tokens known when its last step was planned, and at each pop those computed by then.
        named = int(growth.outputs[max(0, last - self._depth)])
        if self._depth > 1:
            named = max(named, output - 1)
        return request.prompt_tokens + named

    def _leave(self, request: Request) -> int:
        """A request leaves its place among those that decode; returns the last step that it is in."""
        place = request.place
        if place is DECODING:
            self.batch.remove(request, ELSEWHERE, self.launched)
            return self.launched
        request.place = ELSEWHERE
        if place is DRAINING:
            self.draining.remove(request)
            return request.last_step
        return request.join_step

    def _write_counts(self, request: Request, growth: Growth, known: int, last: int) -> int:
        """Write the counts as they are once the step of entry `known` is back and that of entry `last` is launched.

        Returns the output tokens, uncut.
        """
        state, drafting = request.drafts, self.outcomes[request.request_id].drafting
        assert state is not None
        assert drafting is not None
        output, stop = int(growth.outputs[known]), self._stop(request)
        flying = growth.num_drafts(known + 1, last) + last - known
        if known:
            request.num_computed_tokens = request.prompt_tokens + output - 1 + flying
        else:  # its prefill has not come back: known tokens and the padding behind them
            request.num_computed_tokens = int(growth.ends[1])
            flying = 1 + growth.before
        request.num_output_tokens = min(output, stop)
        state.trimmed, state.mid_prefill = max(0, output - stop), False
        if self._depth > 1:
            request.num_output_placeholders = flying
            state.num_drafts = self.asked
        else:
            state.num_drafts = drafting.drafts(output, self.asked) if known and output < stop else 0
        return output

    def _stop(self, request: Request) -> int:
        """Output tokens at which a request ends, one way or the other."""
        return min(self.outcomes[request.request_id].output_tokens, self.cap(request))

    def _count(self, request: Request, growth: Growth, first: int, last: int) -> None:
        """Drafts and acceptances of the steps that came back while a request was on the books."""
        state, counts = request.drafts, self._counts
        assert state is not None
        number, taken = growth.num_drafts(first, last), int(growth.outputs[last] - growth.outputs[first - 1])
        taken -= last - first + 1
        if not number:
            return
        state.draft_tokens += number
        state.accepted += taken
        state.rejected += number - taken
        if first == 1:
            state.steps += growth.before > 0
            counts.drafted[growth.before] += 1
            counts.accepted[0] += 1
            first = 2
        for value, times in enumerate(np.bincount(growth.accepted[first : last + 1]).tolist()):
            counts.accepted[value] += times
        if growth.even >= 0:
            state.steps += last - first + 1 if growth.even else 0
            counts.drafted[growth.even] += last - first + 1
            return
        drafts = growth.drafts_of(first, last)
        state.steps += int(np.count_nonzero(drafts))
        for value, times in enumerate(np.bincount(drafts).tolist()):
            counts.drafted[value] += times
