"""The engine core: which step computes what, and what each step's end delivers. It has no clock.

Steps are numbered as they are launched. A sequence that decodes is not touched from step to step: the k-th of its
tokens comes back with step `token_zero + k`, its context in step e is `base + e`, and heaps know in which step it ends.
Only those that join, leave or prefill are looked at (the *implicit* plan). When tokens or blocks do not suffice for
all, everything is made explicit and `Scheduler.schedule` decides request by request; the next step tries to go back.
Both give the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from ttsim_des.engine.batch import DecodeBatch
from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.request import Outcome, Place, Request, Scheduled, Status
from ttsim_des.engine.scheduler import Plan, Scheduler
from ttsim_des.errors import NotValidError
from ttsim_des.latency.shape import PrefillChunk, StepShape

MAX_FRUITLESS_PREEMPTIONS = 10_000


@dataclass(slots=True)
class Step:
    """A step on its way: `num_seqs` sequences; `entries` when it was planned explicitly.

    `firsts` are the requests whose token in this step is not one step after their last: the first of all, or the
    first after a preemption or a step without them. `stale` are those preempted since: their token still comes.
    """

    num_seqs: int
    firsts: list[Request] = field(default_factory=list)
    stale: list[Request] = field(default_factory=list)
    entries: list[Scheduled] | None = None


@dataclass(slots=True)
class Delivery:
    """What the end of a step brings: inter-token gaps (ns: sequences), milestones passed, requests ended."""

    gaps: dict[int, int] = field(default_factory=dict)
    milestones: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)


class EngineCore:
    """Scheduler, decode batch and the steps in flight of one engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.batch = DecodeBatch(config.block_size)
        self.depth = 2 if config.async_scheduling else 1
        self.in_flight: list[Step] = []
        self._outcomes: dict[int, Outcome] = {}
        self._launched = -1
        self._popped = -1
        self._last_pop_ns = -1
        self._is_explicit = False
        self._fruitless_preemptions = 0
        self._prefilling: list[Request] = []
        self._joining: list[Request] = []
        self._draining: list[Request] = []
        self._late: list[Request] = []
        self._ends: list[tuple[int, int, Request]] = []
        self._skips: list[tuple[int, int, Request]] = []

    # ---- inputs ----

    def add(self, request: Request, outcome: Outcome) -> None:
        """A request joins the waiting queue."""
        self._outcomes[request.request_id] = outcome
        self.scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """End a request that waits or runs; its blocks are free at once and its tokens in flight are dropped."""
        self._settle(request)
        self._end(request, Status.CANCELLED)

    # ---- planning ----

    def plan(self) -> Plan:
        """Plan the next step. `plan.entries` are the explicit ones: all, or those besides the decode batch."""
        step = self._launched + 1
        self.scheduler.has_finished_unreported = False
        if self._is_explicit:
            self._make_implicit(step)
        self._join(step)
        plan = self._plan_implicitly(step)
        if plan is None:
            self._make_explicit()
            plan = self.scheduler.schedule()
        if plan.preempted:
            self._check_progress(len(plan.preempted))
        return plan

    def _check_progress(self, num_preempted: int) -> None:
        """Without reserve_full_isl prompts can preempt each other for ever, as in the real engine: say so."""
        self._fruitless_preemptions += num_preempted
        if self._fruitless_preemptions > MAX_FRUITLESS_PREEMPTIONS:
            raise NotValidError(
                f"{self._fruitless_preemptions} preemptions without a single token: requests take each other's KV "
                "blocks for ever; set engine.scheduler_reserve_full_isl = true or raise engine.num_gpu_blocks"
            )

    def launch(self, plan: Plan) -> StepShape:
        """The planned step goes to the device; returns its shape."""
        self._launched += 1
        step, batch = self._launched, self.batch
        seqs = 0 if self._is_explicit else batch.seqs
        decode_seqs = logits_rows = seqs
        ctx_sum, ctx_max = (batch.ctx_sum(step), batch.ctx_max(step)) if seqs else (0, 0)
        chunks: list[PrefillChunk] = []
        for entry in plan.entries:
            logits_rows += entry.samples
            if entry.is_decode:
                context = entry.computed_before + 1
                decode_seqs += 1
                ctx_sum += context
                ctx_max = max(ctx_max, context)
            else:
                chunks.append(PrefillChunk(entry.num_tokens, entry.computed_before))
        flying = Step(seqs + len(plan.entries))
        if self._is_explicit:
            flying.entries = plan.entries
        else:
            flying.firsts, self._late = self._late, []
            self._follow(plan.entries, step, flying)
        self.in_flight.append(flying)
        return StepShape(decode_seqs, ctx_sum, ctx_max, tuple(chunks), logits_rows)

    def all_entries(self, plan: Plan) -> list[Scheduled]:
        """Every request's part in the step just launched, the decode batch written out, in schedule order."""
        if self._is_explicit:
            return plan.entries
        step = self._launched
        decodes = [
            Scheduled(request, 1, request.base + step - 1, True, request.preemptions)
            for request in self.scheduler.running
            if request.place is Place.DECODING
        ]
        return sorted(decodes + plan.entries, key=lambda entry: entry.request.serial)

    def num_seqs(self, plan: Plan) -> int:
        """Sequences in a step just planned."""
        return len(plan.entries) + (0 if self._is_explicit else self.batch.seqs)

    def launch_nothing(self) -> None:
        """Nothing could be scheduled: an empty step takes its place in the queue (asynchronous scheduling)."""
        self.in_flight.append(Step(0))

    def _plan_implicitly(self, step: int) -> Plan | None:
        """The step in which every running request gets what it wants; None when budget or blocks do not suffice."""
        scheduler, kv = self.scheduler, self.scheduler.kv
        threshold = scheduler.prefill_threshold()
        budget = self.config.max_num_batched_tokens - self.batch.seqs
        blocks = decode_blocks = self.batch.blocks_taken(step)
        chunks: list[tuple[Request, int]] = []
        for request in self._prefilling:
            wanted = scheduler.num_wanted_tokens(request, threshold)
            if wanted > budget and request is not scheduler.running[-1]:
                return None  # a shorter chunk here would leave less for those behind
            num_tokens = min(wanted, budget)
            if num_tokens > 0:
                chunks.append((request, num_tokens))
                blocks += kv.num_missing_blocks(request, request.num_computed_tokens + num_tokens)
                budget -= num_tokens
        if budget < 0:
            return None
        if blocks > kv.num_free_blocks:
            is_intricate = bool(self._prefilling) or self.config.scheduling_policy == "priority"
            return None if is_intricate else Plan([], self._preempt(step))
        kv.take(decode_blocks)
        plan = Plan([scheduler.commit(request, num_tokens) for request, num_tokens in chunks])
        scheduler.schedule_waiting(plan, threshold, budget)
        return plan

    def _preempt(self, step: int) -> list[Request]:
        """Blocks for a decode step that lacks some: victims from the end of `running` until the others have theirs.

        In running order: blocks that are free are taken before a victim gives up its own.
        """
        running, kv, block_size = self.scheduler.running, self.scheduler.kv, self.config.block_size
        unserved = self.batch.blocks_taken(step)  # each of these needs one block; victims come from behind them
        victims: list[Request] = []
        while unserved:
            count = min(kv.num_free_blocks, unserved)
            if count:
                kv.take(count)
                unserved -= count
                continue
            victim = running.pop()
            if victim.place is Place.DECODING and not (victim.base + step - 1) % block_size:
                unserved -= 1
            self._settle(victim)
            if self.in_flight and victim.max_tokens:
                self.in_flight[-1].stale.append(victim)
            self.scheduler.preempt(victim)
            victims.append(victim)
        return victims

    def _follow(self, entries: list[Scheduled], step: int, flying: Step) -> None:
        """Those that prefill go on prefilling, or join the decode batch with their next token."""
        for entry in entries:
            request = entry.request
            if not entry.samples:
                if request.place is Place.ELSEWHERE:
                    request.place = Place.PREFILLING
                    self._prefilling.append(request)
                continue
            if request.place is Place.PREFILLING:
                self._prefilling.remove(request)
            request.base = request.num_computed_tokens - step
            request.token_zero = step - request.num_output_tokens - 1
            request.join_step = step
            self._watch(request, Place.JOINING)
            if request.max_tokens:
                self._joining.append(request)
                flying.firsts.append(request)
            else:
                request.place, request.last_step = Place.DRAINING, step

    def _watch(self, request: Request, place: Place) -> None:
        """Put the steps in which something happens to a request on the heaps."""
        request.place = place
        outcome, limit = self._outcomes[request.request_id], self._cap(request)
        zero, serial = request.token_zero, request.serial
        num_final = min(outcome.output_tokens, limit)
        heappush(self._ends, (zero + num_final if request.max_tokens else request.join_step, serial, request))
        for milestone in outcome.milestones:
            if milestone < num_final:
                heappush(self._ends, (zero + milestone, serial, request))
        if self.depth > 1 and outcome.output_tokens >= limit:
            heappush(self._skips, (zero + limit + 1, serial, request))

    def _cap(self, request: Request) -> int:
        return min(request.max_tokens, self.config.max_model_len - request.prompt_tokens)

    def _join(self, step: int) -> None:
        """From `step` on those that joined decode, and those whose last token is certainly in flight do not."""
        for request in self._joining:
            if request.place is Place.JOINING:
                request.place = Place.DECODING
                self.batch.add(request)
        self._joining.clear()
        while self._skips and self._skips[0][0] <= step:
            _, serial, request = heappop(self._skips)
            if request.place is Place.DECODING and request.serial == serial:
                self.batch.remove(request)
                request.place, request.last_step = Place.DRAINING, step - 1
                self._draining.append(request)

    # ---- between explicit and implicit ----

    def _make_explicit(self) -> None:
        """Write every running request's state out; the step in flight gets its entries."""
        sampling = (Place.DECODING, Place.DRAINING)
        flying = [
            Scheduled(request, 1, 0, True, request.preemptions)
            for request in self.scheduler.running
            if request.place in sampling
        ]
        for request in self.scheduler.running:
            self._settle(request)
        if self.in_flight:
            self.in_flight[-1].entries, self.in_flight[-1].firsts = flying, []
        self._ends, self._skips, self._late = [], [], []
        self._is_explicit = True

    def _make_implicit(self, step: int) -> None:
        """Go back to counting by step index before `step` is planned."""
        self._is_explicit = False
        late: list[Request] = []
        for request in self.scheduler.running:
            placeholders, num_output = request.num_output_placeholders, request.num_output_tokens
            wanted = request.num_tokens + placeholders - request.num_computed_tokens
            request.base = request.num_computed_tokens + 1 - step
            request.token_zero = step - 1 - num_output - placeholders
            request.join_step = step - placeholders
            if not request.max_tokens and not wanted:
                request.join_step = step - 1
                self._watch(request, Place.DRAINING)
                request.last_step = step - 1
                continue
            if placeholders and num_output + placeholders >= self._cap(request):
                self._watch(request, Place.DRAINING)
                request.last_step = step - 1
                self._draining.append(request)
            elif wanted == 1 and num_output + placeholders and placeholders == self.depth - 1:
                self._watch(request, Place.DECODING)
                self.batch.add(request)
            else:
                request.place = Place.PREFILLING
                self._prefilling.append(request)
                continue
            if request.last_token_ns != self._last_pop_ns:
                late.append(request)
        if self.depth == 1:
            self._late = late
        elif self.in_flight:
            self.in_flight[-1].entries, self.in_flight[-1].firsts = None, late

    def _settle(self, request: Request) -> None:
        """Write a request's counts out and take it off the books of the implicit plan."""
        place = request.place
        if place is Place.ELSEWHERE:
            return
        request.place = Place.ELSEWHERE
        if place is Place.PREFILLING:
            self._prefilling.remove(request)
            return
        if place is Place.JOINING:
            last_step = request.join_step
        elif place is Place.DECODING:
            last_step = self._launched
            self.batch.remove(request)
        else:
            last_step = request.last_step
            if not request.max_tokens:
                return
            self._draining.remove(request)
        popped = max(self._popped, request.join_step - 1)
        computed = request.base + last_step
        request.computed_tokens += computed - request.num_computed_tokens
        request.num_computed_tokens = computed
        request.num_output_tokens = popped - request.token_zero
        if self.depth > 1:
            request.num_output_placeholders = last_step - popped
        if self._popped >= request.join_step:
            request.last_token_ns = self._last_pop_ns
        kv = self.scheduler.kv
        request.num_blocks = max(request.num_blocks, kv.num_blocks(computed))
        named = max(last_step - self.depth, popped - 1) - request.token_zero
        kv.register(request, request.prompt_tokens + named)

    # ---- delivering ----

    def deliver(self, now_ns: int) -> Delivery:
        """The oldest step in flight is back: tokens, in schedule order; requests that end leave."""
        step = self.in_flight.pop(0)
        delivery = Delivery()
        if step.num_seqs:
            self._popped += 1
            if step.entries is not None:
                self._deliver_explicitly(step.entries, now_ns, delivery)
            else:
                self._stamp(step, now_ns, delivery.gaps)
                self._last_pop_ns = now_ns
                self._deliver_ends(step.stale, now_ns, delivery)
            self._last_pop_ns = now_ns
            if delivery.gaps or delivery.finished or step.firsts:
                self._fruitless_preemptions = 0
        return delivery

    def _stamp(self, step: Step, now_ns: int, gaps: dict[int, int]) -> None:
        """Everybody in the step gets a token; only those that got none a step ago are looked at."""
        followers = self.batch.seqs + len(self._draining)
        for request in step.firsts:
            if request.place is Place.ELSEWHERE:
                continue
            if self.depth > 1 or request.place is Place.DECODING:
                followers -= 1
            _stamp_token(request, now_ns, gaps)
        if followers:
            gap_ns = now_ns - self._last_pop_ns
            gaps[gap_ns] = gaps.get(gap_ns, 0) + followers

    def _deliver_ends(self, stale: list[Request], now_ns: int, delivery: Delivery) -> None:
        """Milestones and ends of this step, in schedule order; `stale` ones get their token now."""
        ends, step = self._ends, self._popped
        due = [(request.serial, request) for request in stale]
        while ends and ends[0][0] <= step:
            _, serial, request = heappop(ends)
            if request.serial == serial and request.place is not Place.ELSEWHERE:
                due.append((serial, request))
        if len(due) > 1:
            due.sort(key=_serial)
        for _, request in due:
            if request.place is Place.ELSEWHERE:
                if request.status is Status.WAITING:  # else it has ended in this very step, or was cancelled
                    request.num_output_tokens += 1
                    _stamp_token(request, now_ns, delivery.gaps)
                    self._report(request, request.num_output_tokens, delivery)
            else:
                self._report(request, step - request.token_zero if request.max_tokens else 0, delivery)

    def _report(self, request: Request, num_output: int, delivery: Delivery) -> None:
        """A request has `num_output` tokens: has it passed a milestone, has it ended?"""
        outcome = self._outcomes[request.request_id]
        if outcome.milestones and outcome.milestones[0] <= num_output:
            request.num_output_tokens = num_output
            outcome.milestones = [count for count in outcome.milestones if count > num_output]
            delivery.milestones.append(request)
        if not request.max_tokens or num_output >= min(outcome.output_tokens, self._cap(request)):
            self._settle(request)
            request.finish_reason = "stop" if num_output >= outcome.output_tokens else "length"
            request.overshoot_tokens = request.num_output_placeholders
            self._end(request, Status.FINISHED)
            delivery.finished.append(request)

    def _deliver_explicitly(self, entries: list[Scheduled], now_ns: int, delivery: Delivery) -> None:
        for entry in entries:
            request = entry.request
            if not entry.samples or request.status in (Status.FINISHED, Status.CANCELLED):
                continue
            is_stale = entry.epoch != request.preemptions
            if request.max_tokens:
                request.num_output_tokens += 1
                _stamp_token(request, now_ns, delivery.gaps)
                if self.depth > 1 and not is_stale:
                    request.num_output_placeholders -= 1
                    self.scheduler.kv.register(request, request.num_computed_tokens - request.num_output_placeholders)
            elif is_stale:
                continue
            self._report(request, request.num_output_tokens, delivery)

    def _end(self, request: Request, status: Status) -> None:
        self.scheduler.finish(request, status)
        del self._outcomes[request.request_id]

    def num_output_tokens(self, request: Request, more_pops: int) -> int:
        """Output tokens of a request after `more_pops` more pops than have been taken (-1: before the last one)."""
        if request.place in (Place.ELSEWHERE, Place.PREFILLING):
            return request.num_output_tokens
        return max(self._popped + more_pops, request.join_step - 1) - request.token_zero

    # ---- leaping ----

    def num_pops_unchanged(self, plan: Plan) -> int:
        """For how many pops the batch just launched goes on as it is; only the last of them may change something.

        At most 1 means: no leap. While nobody leaves, nobody is admitted either: seats and budget stay taken and free
        blocks only become fewer.
        """
        if self._is_explicit or plan.entries or plan.preempted or self._prefilling or not self.batch.seqs:
            return 1
        step = self._launched
        _drop_dead(self._ends)
        pops = self._ends[0][0] - self._popped
        if self.depth > 1:
            if len(self.in_flight) < self.depth or not self.in_flight[0].num_seqs:
                return 1
            _drop_dead(self._skips)
            if self._skips:
                pops = min(pops, self._skips[0][0] - step)
        if pops <= 1:
            return 1
        free_blocks = self.scheduler.kv.num_free_blocks
        return 1 + self.batch.steps_within_blocks(step, free_blocks, pops - 1)

    def leap(self, extra: int, first_pop_ns: int, last_pop_ns: int, gaps: dict[int, int]) -> None:
        """Launch `extra` more steps of the batch and take the pops before them; `gaps` gets those of the first pop."""
        self._popped += 1
        self._stamp(self.in_flight[0], first_pop_ns, gaps)
        self.scheduler.kv.take(self.batch.blocks_taken_after(self._launched, extra))
        self._launched += extra
        self._popped += extra - 1
        self._last_pop_ns = last_pop_ns
        for index in range(len(self.in_flight)):
            self.in_flight[index] = Step(self.batch.seqs)


def _serial(due: tuple[int, Request]) -> int:
    return due[0]


def _drop_dead(heap: list[tuple[int, int, Request]]) -> None:
    """Take entries of requests that have left since from the top of a heap."""
    while heap and (heap[0][2].serial != heap[0][1] or heap[0][2].place is Place.ELSEWHERE):
        heappop(heap)


def _stamp_token(request: Request, now_ns: int, gaps: dict[int, int]) -> None:
    if request.first_token_ns < 0:
        request.first_token_ns = now_ns
    else:
        gap_ns = now_ns - request.last_token_ns
        gaps[gap_ns] = gaps.get(gap_ns, 0) + 1
    request.last_token_ns = now_ns
