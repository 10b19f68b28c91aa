"""The engine core: which step computes what, and what each step's end delivers. It has no clock.

Most steps are planned *implicitly*: sequences that decode stay in the ledger, and only those that join, leave or
prefill are looked at. When tokens or blocks do not suffice for all, everything is made *explicit* and
`Scheduler.schedule` decides request by request; the next step goes back. Both give the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop
from operator import attrgetter

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.growth import IntArray
from ttsim_des.engine.growth_ledger import GrowthLedger
from ttsim_des.engine.ledger import Ledger
from ttsim_des.engine.request import (
    CANCELLED,
    DECODING,
    DRAINING,
    ELSEWHERE,
    FINISHED,
    RUNNING,
    WAITING,
    Outcome,
    Request,
    Scheduled,
    Status,
)
from ttsim_des.engine.scheduler import Plan, Scheduler
from ttsim_des.engine.speculation import DraftState
from ttsim_des.errors import NotValidError
from ttsim_des.latency.many_steps import ComingSteps
from ttsim_des.latency.shape import PrefillChunk, StepShape
from ttsim_des.records.recorder import DraftCounts
from ttsim_des.tuples import new_tuple

MAX_FRUITLESS_PREEMPTIONS = 10_000


class Step:
    """A step on its way: `num_seqs` sequences; `entries` when it was planned explicitly.

    `firsts` are the requests whose token in this step is not one step after their last: the first of all, or the
    first after a preemption or a step without them. `stale` are those preempted since: their token still comes.
    """

    __slots__ = ("entries", "firsts", "num_seqs", "stale")

    def __init__(self, num_seqs: int, firsts: Sequence[Request] = (), entries: list[Scheduled] | None = None) -> None:
        self.num_seqs, self.firsts, self.entries = num_seqs, firsts, entries
        self.stale: Sequence[Request] = ()


Delivery = tuple[Sequence[Request], Sequence[Request]]
"""What the end of a step brings, each in schedule order: requests that passed a milestone, requests that ended."""

_TOKENS_ONLY: Delivery = ((), ())


class EngineCore:
    """Scheduler, ledger and the steps in flight of one engine; gaps between tokens go to `gap_rows`."""

    def __init__(self, config: EngineConfig, gap_rows: bytearray, draft_counts: DraftCounts) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.speculation = config.speculation
        self.draft_counts = draft_counts
        self._growth: GrowthLedger | None = None
        if self.speculation is not None:
            self._growth = GrowthLedger(config, self.speculation, self.scheduler.kv, gap_rows, self.draft_counts)
        self.ledger: Ledger = self._growth or Ledger(config, self.scheduler.kv, gap_rows)
        self.depth = 2 if config.async_scheduling else 1
        self.in_flight: list[Step] = []
        self.most_decodes = _most_decodes(config)
        self._is_explicit = False
        self._asks_otherwise = False
        """The next step verifies another number of drafts than those on the books expect."""
        self._late: list[Request] = []
        self._fruitless_preemptions = 0

    # ---- inputs ----

    def add(self, request: Request, outcome: Outcome) -> None:
        """A request joins the waiting queue."""
        self.ledger.outcomes[request.request_id] = outcome
        if self.speculation is not None:
            if outcome.drafting is None and request.max_tokens:
                raise NotValidError(
                    f"request {request.request_id}: an engine that speculates must know what is accepted"
                )
            request.drafts = DraftState()
        self.scheduler.waiting.add(request)

    def cancel(self, request: Request) -> None:
        """End a request that waits or runs; its blocks are free at once and its tokens in flight are dropped."""
        self._end(request, CANCELLED)

    # ---- planning ----

    def plan(self) -> Plan:
        """Plan the next step. `plan.entries` are the explicit ones: all, or those besides the decode batch."""
        step = self.ledger.launched + 1
        self.scheduler.has_finished_unreported = False
        if self._asks_otherwise and not self._is_explicit:
            self.ledger.open_step(step)
            self._make_explicit()
        self._asks_otherwise = False
        plan = None
        if not (self._is_explicit and self._stays_explicit()):
            if self._is_explicit:
                self._make_implicit()
            self.ledger.open_step(step)
            plan = self._plan_implicitly(step)
        if plan is None and self._is_explicit:
            plan = self.scheduler.schedule()
        elif plan is None:
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

    def launch_decodes(self) -> StepShape | None:
        """Plan and launch the next step where nobody does anything but decode; None where that is not so."""
        ledger, scheduler = self.ledger, self.scheduler
        if self._is_explicit or ledger.prefilling or scheduler.waiting or self._asks_otherwise:
            return None
        step = ledger.launched + 1
        if ledger.joining or (ledger.skips and ledger.skips[0][0] <= step):
            ledger.open_step(step)
        batch, kv = ledger.batch, scheduler.kv
        seqs, taken = batch.seqs, batch.blocks_taken(step)
        if not seqs or seqs > self.most_decodes or taken > kv.num_free_blocks:
            return None
        if ledger.tight and ledger.is_tight(step):
            return None
        if taken:
            kv.take(taken)
        scheduler.has_finished_unreported = False
        return self._launch_batch(step)

    def can_decode_on(self) -> bool:
        """Whether one step is in flight, that decodes or prefills something, and the next one only decodes.

        That is, if nobody is admitted: the caller knows whether somebody waits.
        """
        flying = self.in_flight
        if len(flying) != 1 or not flying[0].num_seqs or flying[0].stale:
            return False
        return not (self._is_explicit or self.ledger.prefilling)

    def _launch_batch(self, step: int) -> StepShape:
        """The step in which the batch, and nobody else, computes something; returns its shape."""
        self.begin_step(step)
        return self.ledger.batch.shape(step)

    def begin_step(self, step: int) -> None:
        """`_launch_batch` where the shape is known."""
        self.ledger.launched = step
        batch = self.ledger.batch
        flying = Step(batch.seqs)
        if self._late:
            flying.firsts, self._late = self._late, []
        self.in_flight.append(flying)
        if self._growth is not None:
            self._propose(batch.seqs)

    def _propose(self, num_seqs: int) -> int:
        """A step of `num_seqs` sequences is launched: returns how many drafts it leaves per sequence for the next."""
        assert self.speculation is not None
        assert self._growth is not None
        drafts = self._growth.growing.proposed = self.speculation.num_drafts_after(num_seqs)
        if drafts != self._growth.asked:
            self._growth.asked = drafts
            self._asks_otherwise = True
        return drafts

    def launch(self, plan: Plan) -> StepShape:
        """The planned step goes to the device; returns its shape."""
        ledger = self.ledger
        step = ledger.launched + 1
        if not plan.entries:
            return self._launch_batch(step)
        ledger.launched = step
        seqs = 0 if self._is_explicit else ledger.batch.seqs
        shape = ledger.batch.shape(step) if seqs else _NOBODY
        decode_seqs, ctx_sum, ctx_max, _, logits_rows, draft_tokens, _ = shape
        flying = Step(seqs + len(plan.entries))
        self.in_flight.append(flying)
        proposed = self._propose(flying.num_seqs) if self._growth is not None else 0
        chunks: list[PrefillChunk] = []
        for _, num_tokens, computed_before, samples, _, is_decode, num_drafts in plan.entries:
            logits_rows += samples + num_drafts
            if is_decode:
                decode_seqs += 1
                draft_tokens += num_drafts
                context = computed_before + num_tokens
                ctx_sum += context
                ctx_max = max(ctx_max, context)
            else:
                chunks.append(new_tuple(PrefillChunk, (num_tokens, computed_before)))
        if self._is_explicit:
            flying.entries = plan.entries
            if proposed and self.depth > 1:
                _count_on_drafts(plan.entries, proposed)
        else:
            flying.firsts, self._late = self._late, []
            for entry in plan.entries:
                request = entry[0]
                if entry[3]:
                    ledger.enter_decode(request, entry)
                    if request.max_tokens:
                        flying.firsts.append(request)
                elif request.place is ELSEWHERE:
                    ledger.enter_prefill(request)
        return StepShape(decode_seqs, ctx_sum, ctx_max, tuple(chunks), logits_rows, draft_tokens, proposed)

    def all_entries(self, plan: Plan) -> list[Scheduled]:
        """Every request's part in the step just launched, the decode batch written out, in schedule order."""
        if self._is_explicit:
            return plan.entries
        decodes = [
            self.ledger.entry_in_flight(request) for request in self.scheduler.running if request.place is DECODING
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
        scheduler, kv, batch = self.scheduler, self.scheduler.kv, self.ledger.batch
        if batch.seqs > self.most_decodes or self.ledger.is_tight(step):
            return None
        threshold, slots = scheduler.prefill_threshold(), scheduler.draft_slots
        budget = self.config.max_num_batched_tokens - batch.num_tokens(step) - (batch.seqs + 1) * slots
        blocks = decode_blocks = batch.blocks_taken(step)
        chunks: list[tuple[Request, int]] = []
        for request in self.ledger.prefilling:
            wanted = scheduler.num_wanted_tokens(request, threshold)
            if wanted > budget and request is not next(reversed(scheduler.running)):
                return None  # a shorter chunk here would leave less for those behind
            num_tokens = min(wanted, budget)
            if num_tokens > 0:
                chunks.append((request, num_tokens))
                blocks += max(0, scheduler.num_missing_blocks(request, request.num_computed_tokens + num_tokens))
                budget -= num_tokens + slots
        if blocks > kv.num_free_blocks:
            is_intricate = bool(self.ledger.prefilling) or self.config.scheduling_policy == "priority"
            is_intricate |= self._growth is not None
            return None if is_intricate else Plan([], self._preempt(step))
        if decode_blocks:
            kv.take(decode_blocks)
        goes_on = any(request.drafts is not None and request.drafts.mid_prefill for request, _ in chunks)
        plan = Plan([scheduler.commit(request, num_tokens) for request, num_tokens in chunks], [], goes_on)
        if len(scheduler.waiting):
            scheduler.schedule_waiting(plan, threshold, budget, batch.seqs + len(chunks))
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
            victim, _ = running.popitem()
            if victim.place is DECODING and not (victim.base + step - 1) % block_size:
                unserved -= 1
            self.ledger.settle(victim)
            if self.in_flight and victim.max_tokens:
                self.in_flight[-1].stale = [*self.in_flight[-1].stale, victim]
            self.scheduler.preempt(victim)
            victims.append(victim)
        return victims

    # ---- between explicit and implicit ----

    def _stays_explicit(self) -> bool:
        """Whether the next step is sure to be planned request by request again; asked to spare the way back."""
        if self.speculation is None:
            return False
        running, most = self.scheduler.running, 2 * (1 + self.speculation.num_speculative_tokens)
        if not self.most_decodes or self.scheduler.kv.num_free_blocks < len(running):
            return True
        limit = self.config.max_model_len - most
        return any(request.num_computed_tokens > limit for request in running)

    def _make_explicit(self) -> None:
        """Write every running request's state out; the step in flight gets its entries."""
        flying = [
            self.ledger.entry_in_flight(request)
            for request in self.scheduler.running
            if request.place is DRAINING or (request.place is DECODING and self.in_flight)
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
        if not step.num_seqs:
            return _TOKENS_ONLY
        ledger = self.ledger
        ledger.popped += 1
        if step.entries is not None:
            return self._deliver_explicitly(step.entries, now_ns)
        ledger.stamp(step.firsts, now_ns)
        self._fruitless_preemptions = 0
        return self._deliver_ends(step.stale, now_ns)

    def finish_leap(self, pops: int, first_pop_ns: int, last_pop_ns: int) -> Delivery:
        """A leap has ended and no cancel came before its last pop: what that one brings.

        What the first pop leaves in the table of token gaps is written, what the others leave is not.
        """
        self.leap(pops - 1, first_pop_ns, last_pop_ns)
        del self.in_flight[0]
        self.ledger.popped += 1
        self._fruitless_preemptions = 0
        return self._deliver_ends((), last_pop_ns)

    def leap_on(self, extra: int, first_pop_ns: int, last_pop_ns: int) -> Delivery:
        """Launch a step, whose blocks are taken, and `extra` more, and take as many pops: what the last one brings.

        Behind the step in flight; the last one launched takes its place.
        """
        self.ledger.launched += 1
        self.leap(extra, first_pop_ns, last_pop_ns)
        self.ledger.popped += 1
        self._fruitless_preemptions = 0
        return self._deliver_ends((), last_pop_ns)

    def _deliver_ends(self, stale: Sequence[Request], now_ns: int) -> Delivery:
        """Milestones and ends of this step, in schedule order; `stale` ones get their token now."""
        ledger = self.ledger
        ends, popped = ledger.ends, ledger.popped
        if not stale and not (ends and ends[0][0] <= popped):
            return _TOKENS_ONLY
        milestones: list[Request] = []
        finished: list[Request] = []
        due = [*stale]
        while ends and ends[0][0] <= popped:
            _, serial, request = heappop(ends)
            if request.serial == serial and request.place is not ELSEWHERE:
                due.append(request)
        if len(due) > 1:
            due.sort(key=_serial)
        for request in due:
            if request.place is not ELSEWHERE:
                self._report(request, ledger.output_at_last_pop(request), milestones, finished)
            elif request.status is WAITING:  # else it has ended in this very step, or was cancelled
                request.num_output_tokens += 1
                ledger.stamp_one(request, now_ns)
                self._report(request, request.num_output_tokens, milestones, finished)
        return milestones, finished

    def _report(self, request: Request, num_output: int, milestones: list[Request], finished: list[Request]) -> None:
        """A request has `num_output` tokens: has it passed a milestone, has it ended?"""
        ledger = self.ledger
        outcome = ledger.outcomes[request.request_id]
        if outcome.milestones and outcome.milestones[0] <= num_output:
            request.num_output_tokens = num_output
            outcome.milestones = tuple(count for count in outcome.milestones if count > num_output)
            milestones.append(request)
        stops = num_output >= outcome.output_tokens
        if stops or num_output >= ledger.cap(request) or not request.max_tokens:
            self._end(request, FINISHED)
            request.finish_reason = "stop" if stops else "length"
            request.overshoot_tokens = request.num_output_placeholders
            if request.drafts is not None:
                request.overshoot_tokens += request.drafts.trimmed
            finished.append(request)

    def _deliver_explicitly(self, entries: list[Scheduled], now_ns: int) -> Delivery:
        milestones: list[Request] = []
        finished: list[Request] = []
        ledger = self.ledger
        for request, _, _, samples, epoch, is_decode, num_drafts in entries:
            if not samples or request.status in (FINISHED, CANCELLED):
                continue
            is_stale = epoch != request.preemptions
            if request.max_tokens:
                if request.drafts is None:
                    request.num_output_tokens += 1
                    ledger.stamp_one(request, now_ns)
                else:
                    self._verify(request, num_drafts, is_padding=not is_decode, is_stale=is_stale)
                    ledger.stamp_one(request, now_ns, request.drafts.last_tokens)
                if self.depth > 1 and not is_stale:
                    request.num_output_placeholders -= 1
                    self.scheduler.kv.register(request, request.num_computed_tokens - request.num_output_placeholders)
            elif is_stale:
                continue
            self._report(request, request.num_output_tokens, milestones, finished)
            self._fruitless_preemptions = 0
        ledger.last_pop_ns = now_ns
        return milestones, finished

    def _verify(self, request: Request, num_drafts: int, *, is_padding: bool, is_stale: bool) -> None:
        """A request's drafts have been verified: it has one more token than were accepted, and the next drafts."""
        assert request.drafts is not None
        assert self._growth is not None
        state, outcome = request.drafts, self.ledger.outcomes[request.request_id]
        assert outcome.drafting is not None
        known, taken = request.num_output_tokens, 0
        if num_drafts:
            if not is_padding:
                taken = outcome.drafting.accepted(known, num_drafts)
            state.steps += 1
            state.draft_tokens += num_drafts
            state.accepted += taken
            state.rejected += num_drafts if is_stale else num_drafts - taken
            self.draft_counts.drafted[num_drafts] += 1
            self.draft_counts.accepted[taken] += 1
        stop = min(outcome.output_tokens, self.ledger.cap(request))
        request.num_output_tokens = min(known + 1 + taken, stop)
        state.trimmed = 0 if is_stale else known + 1 + taken - request.num_output_tokens
        state.last_tokens = request.num_output_tokens - known
        if not is_stale:
            request.num_computed_tokens -= num_drafts - taken
            if self.depth > 1:
                request.num_output_placeholders -= num_drafts
            elif request.num_output_tokens < stop:
                state.num_drafts = outcome.drafting.drafts(request.num_output_tokens, self._growth.asked)

    def _end(self, request: Request, status: Status) -> None:
        """A request leaves its list and the books, and its blocks are free at once."""
        ledger, scheduler = self.ledger, self.scheduler
        if request.place is not ELSEWHERE:
            scheduler.kv.retire(request, ledger.write_out(request))
        else:
            scheduler.kv.free(request)
        if request.status is RUNNING:
            del scheduler.running[request]
        else:
            scheduler.waiting.remove(request)
        request.status = status
        scheduler.has_finished_unreported = True
        del ledger.outcomes[request.request_id]

    # ---- leaping ----

    def num_pops_unchanged(self) -> int:
        """For how many pops the batch just launched goes on as it is; only the last of them may change something.

        At most 1 means: no leap. Asked after a step in which nobody but the batch computes something and nobody was
        preempted: then, while nobody leaves, nobody is admitted either: seats and budget stay taken and free blocks
        only become fewer.
        """
        ledger, in_flight = self.ledger, self.in_flight
        if len(in_flight) < self.depth or not in_flight[0].num_seqs or ledger.prefilling or self._asks_otherwise:
            return 1
        pops = ledger.pops_until_change(ledger.launched)
        if self._growth is not None and self.scheduler.waiting:
            if self.scheduler.is_head_padded():
                return 1  # each step may evict a block of its prefix: without its padding it may fit
            # Fewer drafts would leave tokens for those that wait.
            pops = self._growth.growing.steps_alike(ledger.launched, pops)
        if pops <= 1:
            return 1
        return 1 + ledger.batch.steps_within_blocks(ledger.launched, self.scheduler.kv.num_free_blocks, pops - 1)

    def coming_steps(self, steps: int) -> ComingSteps:
        """The step just launched and those behind it."""
        assert self._growth is not None
        return self._growth.growing.coming_steps(self._growth.launched, steps)

    def coming_extra_tokens(self, pops: int) -> IntArray:
        """Accepted drafts that the next pops deliver, beside one token for each sequence."""
        assert self._growth is not None
        return self._growth.growing.extra_tokens(self._growth.popped + 1, pops)

    def leap(self, extra: int, first_pop_ns: int, last_pop_ns: int) -> None:
        """Launch `extra` more steps of the batch and take as many pops, from `first_pop_ns` on.

        Afterwards the tokens up to those of `last_pop_ns` count as delivered. What the first pop leaves in the table of
        token gaps is written, what the others leave is not.
        """
        ledger, in_flight = self.ledger, self.in_flight
        batch, launched = ledger.batch, ledger.launched
        ledger.popped += 1
        ledger.stamp(in_flight[0].firsts, first_pop_ns)
        taken = batch.blocks_taken_after(launched, extra)
        if taken:
            self.scheduler.kv.take(taken)
        ledger.launched = launched + extra
        ledger.popped += extra - 1
        ledger.last_pop_ns = last_pop_ns
        for step in in_flight:
            step.num_seqs, step.firsts = batch.seqs, ()


def _most_decodes(config: EngineConfig) -> int:
    """So many decoding sequences are sure to find room in a step's token budget, whatever they draft."""
    if config.speculation is None:
        return config.max_num_batched_tokens
    most = 1 + config.speculation.num_speculative_tokens
    if 0 < config.long_prefill_token_threshold < most:
        return 0
    return config.max_num_batched_tokens // (most + config.speculation.draft_slots)


def _count_on_drafts(entries: list[Scheduled], drafts: int) -> None:
    """Asynchronously planned, the next step counts on new drafts for all that this one samples for."""
    for entry in entries:
        if entry.samples and entry.request.drafts is not None and entry.request.max_tokens:
            entry.request.drafts.num_drafts = drafts


_NOBODY = StepShape(0, 0, 0, (), 0)
_serial = attrgetter("serial")
