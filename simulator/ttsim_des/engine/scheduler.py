"""vLLM V1's scheduler: one rule of token accounting, no prefill phase and no decode phase.

A request wants as many tokens as it has known (plus placeholders of tokens in flight) minus those computed. Each
step serves RUNNING requests in order of admission, then admits WAITING ones, within the token budget; when KV
blocks run out, running requests are preempted and later recomputed. Rules and how they were checked against a
real engine: docs/engine.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.kv_cache import KVCacheManager, Piece
from ttsim_des.engine.request import RUNNING, WAITING, PromptSegment, Request, Scheduled
from ttsim_des.engine.request_queue import QUEUES, RequestQueue
from ttsim_des.tuples import new_tuple


@dataclass(slots=True)
class Plan:
    """What one step computes, in schedule order, and whom it preempted."""

    entries: list[Scheduled] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    mid_prefill: bool = False
    """With speculative decoding: a running request goes on with a prefill that it has begun."""


class Scheduler:
    """Plans steps and keeps the books; it has no clock and never sees a true output length."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.kv = KVCacheManager(config)
        self.running: dict[Request, None] = {}
        """In order of admission; nobody is looked at for one to leave."""
        self.waiting: RequestQueue = QUEUES[config.scheduling_policy]()
        self._num_admissions = 0
        self.speculation = config.speculation
        self._lookahead = self.speculation.num_lookahead_tokens if self.speculation else 0
        self.draft_slots = self.speculation.draft_slots if self.speculation else 0
        self.has_finished_unreported = False
        """vLLM schedules once more, empty, after a request has ended, to tell the workers."""

    def has_requests(self) -> bool:
        """Whether `schedule` has anything to do."""
        return bool(self.running or len(self.waiting) or self.has_finished_unreported)

    def schedule(self) -> Plan:
        """Plan the next step and count its tokens as computed; blocks are taken and named now."""
        plan = Plan()
        self.has_finished_unreported = False
        threshold = self.prefill_threshold()
        budget = self._schedule_running(plan, threshold)
        if not plan.preempted:
            self.schedule_waiting(plan, threshold, budget, len(plan.entries))
        return plan

    def prefill_threshold(self) -> int:
        """The cap on a chunk of prefill in the next step; 0: none, as when a request is alone."""
        is_lone = len(self.running) + len(self.waiting) == 1
        return 0 if is_lone else self.config.long_prefill_token_threshold

    def _schedule_running(self, plan: Plan, threshold: int) -> int:
        budget, slots = self.config.max_num_batched_tokens - self.draft_slots, self.draft_slots
        running, index = list(self.running), 0
        while index < len(running) and budget > 0:
            request = running[index]
            num_tokens = min(self.num_wanted_tokens(request, threshold), budget)
            if num_tokens == 0:
                index += 1
                continue
            victims = len(plan.preempted)
            freed_budget, freed_before, fits = self._make_room(request, num_tokens, plan)
            for victim in plan.preempted[victims:]:
                running.remove(victim)
            budget += freed_budget
            index -= freed_before
            if not fits:
                break
            plan.mid_prefill |= request.drafts is not None and request.drafts.mid_prefill
            plan.entries.append(self.commit(request, num_tokens))
            budget -= num_tokens + slots
            index += 1
        return budget

    def num_wanted_tokens(self, request: Request, threshold: int) -> int:
        """Tokens that a running request would compute in the next step if the budget allowed."""
        placeholders, computed = request.num_output_placeholders, request.num_computed_tokens
        if placeholders and computed + 2 - placeholders >= request.prompt_tokens + request.max_tokens:
            return 0  # its last token is certainly in flight
        wanted = request.num_tokens + placeholders - computed
        if request.drafts is not None:
            wanted += request.drafts.num_drafts
        if 0 < threshold < wanted:
            wanted = threshold
        return min(wanted, self.config.max_model_len - 1 - computed)

    def _make_room(self, request: Request, num_tokens: int, plan: Plan) -> tuple[int, int, bool]:
        """Preempt until `request` can have blocks for `num_tokens` more.

        Returns the budget given back and the number of earlier entries undone by victims that this step had
        scheduled already, and whether the request itself survived.
        """
        freed_budget = freed_before = 0
        missing = self.num_missing_blocks(request, request.num_computed_tokens + num_tokens)
        while missing > self.kv.num_free_blocks:
            victim = self._pick_victim()
            del self.running[victim]
            for position, entry in enumerate(plan.entries):
                if entry.request is victim:
                    freed_budget += entry.num_tokens + self.draft_slots
                    freed_before += 1
                    if victim.drafts is not None and entry.samples and victim.num_output_placeholders:
                        victim.num_output_placeholders -= 1 + entry.num_drafts
                    victim.computed_tokens -= entry.num_tokens
                    victim.recomputed_tokens -= _num_recomputed(victim, entry.computed_before)
                    victim.num_computed_tokens = entry.computed_before
                    del plan.entries[position]
                    break
            self.preempt(victim)
            plan.preempted.append(victim)
            if victim is request:
                return freed_budget, freed_before, False
        return freed_budget, freed_before, True

    def _pick_victim(self) -> Request:
        if self.config.scheduling_policy == "priority":
            return max(self.running, key=lambda request: (request.priority, request.arrival_ns))
        return next(reversed(self.running))

    def preempt(self, request: Request) -> None:
        """Take all blocks from a request that has left `running`; it waits to be computed again."""
        self.kv.free(request)
        request.status = WAITING
        reached = request.num_computed_tokens
        if request.drafts is not None:
            reached -= max(0, request.num_output_placeholders - 1)  # drafts that nobody has verified
            request.drafts.num_drafts = 0
        request.high_water_tokens = max(request.high_water_tokens, reached)
        request.num_computed_tokens = 0
        request.num_output_placeholders = 0
        request.preemptions += 1
        self.waiting.put_back(request)

    def num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Blocks to take so that `request` can compute up to `num_tokens` tokens, and draft behind them."""
        if self._lookahead:
            num_tokens = min(num_tokens + self._lookahead, self.config.max_model_len)
        return -(-num_tokens // self.kv.block_size) - request.num_blocks

    def _num_padding(self, plan: Plan, num_others: int, num_cached: int) -> int:
        """Invalid drafts for a request that waits with one token to compute, which keep the batch uniform.

        Only in a step that prefills nothing, and beside others or on top of a cached prefix.
        """
        speculation = self.speculation
        if speculation is None or speculation.by_batch_size or plan.mid_prefill or not (num_others or num_cached):
            return 0
        fits = num_cached + 1 + speculation.num_speculative_tokens + 1 <= self.config.max_model_len
        return speculation.num_speculative_tokens if fits else 0

    def is_head_padded(self) -> bool:
        """Whether a request for which a seat is free would come with padding, as long as its cached prefix is whole."""
        if self.speculation is None or self.speculation.by_batch_size or len(self.running) >= self.config.max_num_seqs:
            return False
        request = self.waiting.peek()
        hits = self.kv.find_prefix(request)
        return bool(hits) and request.max_tokens > 0 and request.num_tokens - hits[-1][2] * self.kv.block_size == 1

    def schedule_waiting(self, plan: Plan, threshold: int, budget: int, num_others: int) -> None:
        """Admit from the head of the waiting queue while budget, seats and blocks last.

        `num_others`: running requests that the step computes something for.
        """
        config, kv, waiting, running = self.config, self.kv, self.waiting, self.running
        block_size, max_num_seqs = config.block_size, config.max_num_seqs
        hits: list[Piece] = []
        sibling: tuple[PromptSegment, ...] = ()
        twin: Scheduled | None = None
        while budget > 0 and len(running) < max_num_seqs and waiting:
            request = waiting.peek()
            if (
                twin is not None
                and request.prompt is sibling
                and self._admit_twin(request, twin, len(hits), plan, budget)
            ):
                budget -= twin[1]
                continue
            num_known = request.prompt_tokens + request.num_output_tokens
            if request.prompt is not sibling or request.num_output_tokens:
                hits, sibling = kv.find_prefix(request), ()
            num_cached = hits[-1][2] * block_size if hits else 0
            num_tokens, padding = num_known - num_cached, 0
            if num_tokens == 1 and request.max_tokens and self.speculation is not None:
                padding = self._num_padding(plan, num_others, num_cached)
                if 1 + padding > budget:
                    break
                num_tokens += padding
            if 0 < threshold < num_tokens:
                num_tokens, padding = threshold, max(0, padding + threshold - num_tokens)
            if num_tokens > budget:
                if not config.enable_chunked_prefill:
                    break
                num_tokens = budget
            must_fit = num_cached + num_tokens
            if self._lookahead:
                must_fit = min(must_fit + self._lookahead, config.max_model_len)
            if num_known > must_fit and config.scheduler_reserve_full_isl:
                must_fit = num_known
            if not kv.can_admit(hits, must_fit, config.watermark_blocks if running else 0):
                break
            waiting.pop()
            if hits:
                kv.admit(request, hits)
                if num_known - num_cached <= block_size and not request.num_output_tokens and not sibling:
                    # All that could be a hit is held now: another sample of the prompt right behind it hits just that.
                    hits = [(extent, extent.low, extent.high) for extent, _ in request.holdings]
                    sibling = request.prompt
            running[request] = None
            request.serial, request.status, request.num_computed_tokens = self._num_admissions, RUNNING, num_cached
            self._num_admissions += 1
            if request.first_hit_tokens < 0:
                request.first_hit_tokens = request.cached_tokens = num_cached
            elif num_cached > request.high_water_tokens:  # hits beyond what it ever computed itself are saved work too
                request.cached_tokens += num_cached - request.high_water_tokens
            if request.drafts is not None:
                request.drafts.num_drafts = padding
            entry = self.commit(request, num_tokens, is_padded=padding > 0)
            plan.entries.append(entry)
            budget -= num_tokens + self.draft_slots
            twin = entry if sibling and _can_have_twins(entry) else None

    def _admit_twin(self, request: Request, twin: Scheduled, num_hits: int, plan: Plan, budget: int) -> bool:
        """Admit a sample of the prompt of `twin`, the sample before it, if what happens to it is the very same.

        Of the `num_hits` pieces of its prefix, of which all are held, the blocks behind them are its own.
        """
        other, num_tokens, num_cached, *_ = twin
        missing = other.num_blocks - num_cached // self.config.block_size
        if (
            request.first_hit_tokens >= 0
            or request.max_tokens == 0
            or num_tokens > budget
            or missing + self.config.watermark_blocks > self.kv.num_free_blocks
        ):
            return False
        self.waiting.pop()
        self.running[request] = None
        self.kv.admit_alike(request, other, num_hits, missing)
        request.serial, request.status = self._num_admissions, RUNNING
        self._num_admissions += 1
        request.first_hit_tokens = request.cached_tokens = num_cached
        request.num_computed_tokens, request.computed_tokens = num_cached + num_tokens, num_tokens
        request.num_output_placeholders = other.num_output_placeholders
        plan.entries.append(new_tuple(Scheduled, (request, *twin[1:])))
        return True

    def commit(self, request: Request, num_tokens: int, *, is_padded: bool = False) -> Scheduled:
        """Count `num_tokens` more tokens of `request` as computed; takes their blocks and names those filled."""
        computed_before = request.num_computed_tokens
        computed = computed_before + num_tokens
        num_known, kv = request.prompt_tokens + request.num_output_tokens, self.kv
        missing = -(-computed // kv.block_size) - request.num_blocks
        if self._lookahead:
            missing = self.num_missing_blocks(request, computed)
        if missing > 0:
            request.num_blocks += missing
            kv.take(missing)
        named = computed if computed < num_known else num_known
        if named // kv.block_size > request.num_registered_blocks:
            kv.register(request, named)
        samples = computed == num_known + request.num_output_placeholders
        request.num_computed_tokens = computed
        request.computed_tokens += num_tokens
        if computed_before < request.high_water_tokens:
            request.recomputed_tokens += _num_recomputed(request, computed_before)
        num_drafts = 0
        if request.drafts is not None:
            samples, num_drafts = self._take_drafts(request)
            request.drafts.is_padded = is_padded
        if samples and self.config.async_scheduling and request.max_tokens:
            request.num_output_placeholders += 1 + num_drafts
        is_decode = num_tokens - num_drafts == 1 and computed_before >= request.prompt_tokens and not is_padded
        parts = (request, num_tokens, computed_before, samples, request.preemptions, is_decode, num_drafts)
        return new_tuple(Scheduled, parts)

    def _take_drafts(self, request: Request) -> tuple[bool, int]:
        """Whether the tokens just counted reach the last known or awaited one, and how many drafts are among them."""
        state = request.drafts
        assert state is not None
        beyond = request.num_computed_tokens - request.num_tokens - request.num_output_placeholders
        state.num_drafts = 0
        state.mid_prefill = beyond < 0
        return beyond >= 0, max(0, beyond)


def _can_have_twins(entry: Scheduled) -> bool:
    """Whether another sample of the same prompt, to be admitted right behind, would be treated just so.

    That is, if all that this one hit is held, and the rest of its prompt is computed now.
    """
    request = entry[0]
    return (
        entry[3]
        and request.drafts is None
        and not request.num_output_tokens
        and request.max_tokens > 0
        and not request.preemptions
    )


def _num_recomputed(request: Request, computed_before: int) -> int:
    """Of the tokens computed on top of `computed_before`, those that had been computed before a preemption."""
    return max(0, min(request.num_computed_tokens, request.high_water_tokens) - computed_before)
