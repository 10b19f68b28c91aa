"""vLLM V1's scheduler: one rule of token accounting, no prefill phase and no decode phase.

A request wants as many tokens as it has known (plus placeholders of tokens in flight) minus those computed. Each
step serves RUNNING requests in order of admission, then admits WAITING ones, within the token budget; when KV
blocks run out, running requests are preempted and later recomputed. Rules and how they were checked against a
real engine: docs/engine.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.kv_cache import KVCacheManager
from ttsim_des.engine.request import Request, Scheduled, Status
from ttsim_des.engine.request_queue import QUEUES, RequestQueue


@dataclass(slots=True)
class Plan:
    """What one step computes, in schedule order, and whom it preempted."""

    entries: list[Scheduled] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)


class Scheduler:
    """Plans steps and keeps the books; it has no clock and never sees a true output length."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.kv = KVCacheManager(config)
        self.running: list[Request] = []
        self.waiting: RequestQueue = QUEUES[config.scheduling_policy]()
        self._num_admissions = 0
        self.has_finished_unreported = False
        """vLLM schedules once more, empty, after a request has ended, to tell the workers."""

    def has_requests(self) -> bool:
        """Whether `schedule` has anything to do."""
        return bool(self.running or len(self.waiting) or self.has_finished_unreported)

    def add(self, request: Request) -> None:
        """A request joins the waiting queue."""
        self.waiting.add(request)

    def schedule(self) -> Plan:
        """Plan the next step and count its tokens as computed; blocks are taken and named now."""
        plan = Plan()
        self.has_finished_unreported = False
        threshold = self.prefill_threshold()
        budget = self._schedule_running(plan, threshold)
        if not plan.preempted:
            self.schedule_waiting(plan, threshold, budget)
        return plan

    def prefill_threshold(self) -> int:
        """The cap on a chunk of prefill in the next step; 0: none, as when a request is alone."""
        is_lone = len(self.running) + len(self.waiting) == 1
        return 0 if is_lone else self.config.long_prefill_token_threshold

    def _schedule_running(self, plan: Plan, threshold: int) -> int:
        budget = self.config.max_num_batched_tokens
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_tokens = min(self.num_wanted_tokens(request, threshold), budget)
            if num_tokens == 0:
                index += 1
                continue
            freed_budget, freed_before, fits = self._make_room(request, num_tokens, plan)
            budget += freed_budget
            index -= freed_before
            if not fits:
                break
            plan.entries.append(self.commit(request, num_tokens))
            budget -= num_tokens
            index += 1
        return budget

    def num_wanted_tokens(self, request: Request, threshold: int) -> int:
        """Tokens that a running request would compute in the next step if the budget allowed."""
        placeholders, computed = request.num_output_placeholders, request.num_computed_tokens
        if placeholders and computed + 2 - placeholders >= request.prompt_tokens + request.max_tokens:
            return 0  # its last token is certainly in flight
        wanted = request.num_tokens + placeholders - computed
        if 0 < threshold < wanted:
            wanted = threshold
        return min(wanted, self.config.max_model_len - 1 - computed)

    def _make_room(self, request: Request, num_tokens: int, plan: Plan) -> tuple[int, int, bool]:
        """Preempt until `request` can have blocks for `num_tokens` more.

        Returns the budget given back and the number of earlier entries undone by victims that this step had
        scheduled already, and whether the request itself survived.
        """
        freed_budget = freed_before = 0
        missing = self.kv.num_missing_blocks(request, request.num_computed_tokens + num_tokens)
        while missing > self.kv.num_free_blocks:
            victim = self._pick_victim()
            self.running.remove(victim)
            for position, entry in enumerate(plan.entries):
                if entry.request is victim:
                    freed_budget += entry.num_tokens
                    freed_before += 1
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
        return self.running[-1]

    def preempt(self, request: Request) -> None:
        """Take all blocks from a request that has left `running`; it waits to be computed again."""
        self.kv.free(request)
        request.status = Status.WAITING
        request.high_water_tokens = max(request.high_water_tokens, request.num_computed_tokens)
        request.num_computed_tokens = 0
        request.num_output_placeholders = 0
        request.preemptions += 1
        self.waiting.put_back(request)

    def schedule_waiting(self, plan: Plan, threshold: int, budget: int) -> None:
        """Admit from the head of the waiting queue while budget, seats and blocks last."""
        while len(self.waiting) and budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.peek()
            hits = self.kv.find_prefix(request)
            num_cached = sum(piece.high - piece.low for piece in hits) * self.kv.block_size
            num_tokens = request.num_tokens - num_cached
            if 0 < threshold < num_tokens:
                num_tokens = threshold
            if num_tokens > budget:
                if not self.config.enable_chunked_prefill:
                    break
                num_tokens = budget
            spare = self.config.watermark_blocks if self.running else 0
            reserve = self.config.scheduler_reserve_full_isl
            must_fit = request.num_tokens if reserve else num_cached + num_tokens
            if not self.kv.can_admit(request, hits, must_fit, spare):
                break
            self.waiting.pop()
            self.kv.admit(request, hits)
            self.running.append(request)
            request.serial = self._num_admissions
            self._num_admissions += 1
            request.status = Status.RUNNING
            request.num_computed_tokens = num_cached
            if request.first_hit_tokens < 0:
                request.first_hit_tokens = request.cached_tokens = num_cached
            else:  # hits beyond what it ever computed itself are saved work too
                request.cached_tokens += max(0, num_cached - request.high_water_tokens)
            plan.entries.append(self.commit(request, num_tokens))
            budget -= num_tokens

    def commit(self, request: Request, num_tokens: int) -> Scheduled:
        """Count `num_tokens` more tokens of `request` as computed; takes their blocks and names those filled."""
        computed_before = request.num_computed_tokens
        computed = computed_before + num_tokens
        self.kv.allocate(request, computed)
        self.kv.register(request, min(computed, request.num_tokens))
        samples = computed == request.num_tokens + request.num_output_placeholders
        request.num_computed_tokens = computed
        request.computed_tokens += num_tokens
        request.recomputed_tokens += _num_recomputed(request, computed_before)
        if samples and self.config.async_scheduling and request.max_tokens:
            request.num_output_placeholders += 1
        return Scheduled(request, num_tokens, computed_before, samples, request.preemptions)

    def finish(self, request: Request, status: Status) -> None:
        """A request ends: it leaves its list and its blocks are free at once."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self.kv.free(request)
        request.status = status
        self.has_finished_unreported = True


def _num_recomputed(request: Request, computed_before: int) -> int:
    """Of the tokens computed on top of `computed_before`, those that had been computed before a preemption."""
    return max(0, min(request.num_computed_tokens, request.high_water_tokens) - computed_before)
