"""The engine core: which step computes what, and what each step's end delivers. It has no clock.

Most steps are planned *implicitly*: sequences that decode stay in the ledger, and only those that join, leave or
prefill are looked at. When tokens or blocks do not suffice for all, everything is made *explicit* and
`Scheduler.schedule` decides request by request; the next step goes back. Both give the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.ledger import Ledger, stamp_token
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
    """Scheduler, ledger and the steps in flight of one engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.ledger = Ledger(config, self.scheduler.kv)
        self.depth = 2 if config.async_scheduling else 1
        self.in_flight: list[Step] = []
        self._is_explicit = False
        self._late: list[Request] = []
        self._fruitless_preemptions = 0

    # ---- inputs ----

    def add(self, request: Request, outcome: Outcome) -> None:
        """A request joins the waiting queue."""
        self.ledger.outcomes[request.request_id] = outcome
        self.scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """End a request that waits or runs; its blocks are free at once and its tokens in flight are dropped."""
        self.ledger.settle(request)
        self._end(request, Status.CANCELLED)

    # ---- planning ----

    def plan(self) -> Plan:
        """Plan the next step. `plan.entries` are the explicit ones: all, or those besides the decode batch."""
        step = self.ledger.launched + 1
        self.scheduler.has_finished_unreported = False
        if self._is_explicit:
            self._make_implicit()
        self.ledger.open_step(step)
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
        ledger = self.ledger
        ledger.launched += 1
        step, batch = ledger.launched, ledger.batch
        seqs = 0 if self._is_explicit else batch.seqs
        decode_seqs = logits_rows = seqs
        ctx_sum, ctx_max = (batch.ctx_sum(step), batch.ctx_max(step)) if seqs else (0, 0)
        flying = Step(seqs + len(plan.entries))
        if not plan.entries:
            flying.firsts, self._late = self._late, []
            self.in_flight.append(flying)
            return StepShape(seqs, ctx_sum, ctx_max, (), seqs)
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
        if self._is_explicit:
            flying.entries = plan.entries
        else:
            flying.firsts, self._late = self._late, []
            for entry in plan.entries:
                request = entry.request
                if entry.samples:
                    ledger.enter_decode(request)
                    if request.max_tokens:
                        flying.firsts.append(request)
                elif request.place is Place.ELSEWHERE:
                    ledger.enter_prefill(request)
        self.in_flight.append(flying)
        return StepShape(decode_seqs, ctx_sum, ctx_max, tuple(chunks), logits_rows)

    def all_entries(self, plan: Plan) -> list[Scheduled]:
        """Every request's part in the step just launched, the decode batch written out, in schedule order."""
        if self._is_explicit:
            return plan.entries
        step = self.ledger.launched
        decodes = [
            Scheduled(request, 1, request.base + step - 1, True, request.preemptions)
            for request in self.scheduler.running
            if request.place is Place.DECODING
        ]
        return sorted(decodes + plan.entries, key=lambda entry: entry.request.serial)

    def num_seqs(self, plan: Plan) -> int:
        """Sequences in a step just planned."""
        return len(plan.entries) + (0 if self._is_explicit else self.ledger.batch.seqs)

    def launch_nothing(self) -> None:
        """Nothing could be scheduled: an empty step takes its place in the queue (asynchronous scheduling)."""
        self.in_flight.append(Step(0))

    def _plan_implicitly(self, step: int) -> Plan | None:
        """The step in which every running request gets what it wants; None when budget or blocks do not suffice."""
        scheduler, kv = self.scheduler, self.scheduler.kv
        threshold = scheduler.prefill_threshold()
        budget = self.config.max_num_batched_tokens - self.ledger.batch.seqs
        blocks = decode_blocks = self.ledger.batch.blocks_taken(step)
        chunks: list[tuple[Request, int]] = []
        for request in self.ledger.prefilling:
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
            is_intricate = bool(self.ledger.prefilling) or self.config.scheduling_policy == "priority"
            return None if is_intricate else Plan([], self._preempt(step))
        if decode_blocks:
            kv.take(decode_blocks)
        plan = Plan([scheduler.commit(request, num_tokens) for request, num_tokens in chunks])
        if len(scheduler.waiting):
            scheduler.schedule_waiting(plan, threshold, budget)
        return plan

    def _preempt(self, step: int) -> list[Request]:
        """Blocks for a decode step that lacks some: victims from the end of `running` until the others have theirs.

        In running order: blocks that are free are taken before a victim gives up its own.
        """
        running, kv, block_size = self.scheduler.running, self.scheduler.kv, self.config.block_size
        unserved = self.ledger.batch.blocks_taken(step)  # each of these needs one block; victims come from behind them
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
            self.ledger.settle(victim)
            if self.in_flight and victim.max_tokens:
                self.in_flight[-1].stale.append(victim)
            self.scheduler.preempt(victim)
            victims.append(victim)
        return victims

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
            self.ledger.settle(request)
        if self.in_flight:
            self.in_flight[-1].entries, self.in_flight[-1].firsts = flying, []
        self.ledger.clear()
        self._late = []
        self._is_explicit = True

    def _make_implicit(self) -> None:
        """Go back to counting by step index before the next step is planned."""
        self._is_explicit = False
        late = [request for request in self.scheduler.running if self.ledger.resume(request)]
        if self.depth == 1:
            self._late = late
        elif self.in_flight:
            self.in_flight[-1].entries, self.in_flight[-1].firsts = None, late

    # ---- delivering ----

    def deliver(self, now_ns: int) -> Delivery:
        """The oldest step in flight is back: tokens, in schedule order; requests that end leave."""
        step = self.in_flight.pop(0)
        delivery = Delivery()
        if step.num_seqs:
            ledger = self.ledger
            ledger.popped += 1
            if step.entries is not None:
                self._deliver_explicitly(step.entries, now_ns, delivery)
                ledger.last_pop_ns = now_ns
            else:
                ledger.stamp(step.firsts, now_ns, delivery.gaps)
                ledger.last_pop_ns = now_ns
                self._deliver_ends(step.stale, now_ns, delivery)
            if delivery.gaps or delivery.finished or step.firsts:
                self._fruitless_preemptions = 0
        return delivery

    def _deliver_ends(self, stale: list[Request], now_ns: int, delivery: Delivery) -> None:
        """Milestones and ends of this step, in schedule order; `stale` ones get their token now."""
        step = self.ledger.popped
        due = self.ledger.take_due() + [(request.serial, request) for request in stale]
        if len(due) > 1:
            due.sort(key=_serial)
        for _, request in due:
            if request.place is Place.ELSEWHERE:
                if request.status is Status.WAITING:  # else it has ended in this very step, or was cancelled
                    request.num_output_tokens += 1
                    stamp_token(request, now_ns, delivery.gaps)
                    self._report(request, request.num_output_tokens, delivery)
            else:
                self._report(request, step - request.token_zero if request.max_tokens else 0, delivery)

    def _report(self, request: Request, num_output: int, delivery: Delivery) -> None:
        """A request has `num_output` tokens: has it passed a milestone, has it ended?"""
        outcome = self.ledger.outcomes[request.request_id]
        if outcome.milestones and outcome.milestones[0] <= num_output:
            request.num_output_tokens = num_output
            outcome.milestones = [count for count in outcome.milestones if count > num_output]
            delivery.milestones.append(request)
        if not request.max_tokens or num_output >= min(outcome.output_tokens, self.ledger.cap(request)):
            self.ledger.settle(request)
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
                stamp_token(request, now_ns, delivery.gaps)
                if self.depth > 1 and not is_stale:
                    request.num_output_placeholders -= 1
                    self.scheduler.kv.register(request, request.num_computed_tokens - request.num_output_placeholders)
            elif is_stale:
                continue
            self._report(request, request.num_output_tokens, delivery)

    def _end(self, request: Request, status: Status) -> None:
        self.scheduler.finish(request, status)
        del self.ledger.outcomes[request.request_id]

    # ---- leaping ----

    def num_pops_unchanged(self, plan: Plan) -> int:
        """For how many pops the batch just launched goes on as it is; only the last of them may change something.

        At most 1 means: no leap. While nobody leaves, nobody is admitted either: seats and budget stay taken and free
        blocks only become fewer.
        """
        ledger = self.ledger
        if self._is_explicit or plan.entries or plan.preempted or ledger.prefilling or not ledger.batch.seqs:
            return 1
        if len(self.in_flight) < self.depth or not self.in_flight[0].num_seqs:
            return 1
        pops = ledger.pops_until_change()
        if pops <= 1:
            return 1
        return 1 + ledger.batch.steps_within_blocks(ledger.launched, self.scheduler.kv.num_free_blocks, pops - 1)

    def leap(self, extra: int, first_pop_ns: int, last_pop_ns: int, gaps: dict[int, int]) -> None:
        """Launch `extra` more steps of the batch and take the pops before them; `gaps` gets those of the first pop."""
        ledger = self.ledger
        ledger.stamp(self.in_flight[0].firsts, first_pop_ns, gaps)
        self.scheduler.kv.take(ledger.batch.blocks_taken_after(ledger.launched, extra))
        ledger.launched += extra
        ledger.popped += extra
        ledger.last_pop_ns = last_pop_ns
        self.in_flight = [Step(ledger.batch.seqs) for _ in self.in_flight]


def _serial(due: tuple[int, Request]) -> int:
    return due[0]
