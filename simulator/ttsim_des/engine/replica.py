"""One engine on the timeline: takes inputs, launches steps, waits for the device and hands out tokens.

Synchronous: schedule, execute, update, again. Asynchronous (vLLM's default on GPUs): a queue of two steps, so that
step k+1 is scheduled before the tokens of step k are known and host time hides behind the device. Both are one
loop here, with one or two steps in flight. Inputs are looked at between steps only, cancels also when a step's
result arrives, before its outputs are handled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.core import Delivery, EngineCore
from ttsim_des.engine.growth_leap import GrowthLeap
from ttsim_des.engine.leap import Leap
from ttsim_des.engine.request import ELSEWHERE, PREFILLING, RUNNING, WAITING, Outcome, Request
from ttsim_des.engine.scheduler import Plan
from ttsim_des.errors import NotValidError
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.many_steps import many_steps
from ttsim_des.latency.shape import Run, StepModel, StepShape
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.records.tables import pack_gap, pack_step
from ttsim_des.timeline import SCHEDULE, STEP_END, Event, Phase, Timeline

Stepping = Literal["leap", "step"]
_ALIVE = (WAITING, RUNNING)


class Listener(Protocol):
    """Who is told what comes out of an engine; `delivered_ns` is when the client side can act on it."""

    def on_finish(self, request: Request, delivered_ns: int, *, is_alone: bool) -> None:
        """A request has its last token, or its prefill when it asked for none.

        `is_alone`: nothing else came of that step.
        """
        ...

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        """A request has reached a token count that somebody asked to be told of."""
        ...


_Input = tuple[int, Request, Outcome | None]
"""When it came, and the request's outcome; None: a cancel."""


class Replica:
    """One engine and its place on the timeline.

    `on_plan(plan, start_ns, end_ns)`, when given, sees every plan that computes or preempts something as it is
    made, all of its entries written out; where stepping is "leap" a plan may stand for many steps.
    """

    def __init__(
        self,
        index: int,
        config: EngineConfig,
        model: StepModel,
        host: HostOverhead,
        timeline: Timeline,
        listener: Listener,
        recorder: StepRecorder,
        stepping: Stepping = "leap",
        on_plan: Callable[[Plan, int, int], None] | None = None,
    ) -> None:
        self.index = index
        self.core = EngineCore(config, recorder.gap_rows, recorder.draft_counts)
        self.scheduler = self.core.scheduler
        self._model = model
        self._draft_steps = many_steps(model)
        self._schedule_step_ns, self._schedule_sequence_ns, self._update_step_ns, self._update_sequence_ns, _ = host
        self._timeline, self._listener = timeline, listener
        self._recorder, self._step_rows, self._gap_rows = recorder, recorder.step_rows, recorder.gap_rows
        self._leaps, self._on_plan = stepping == "leap", on_plan
        self._depth = self.core.depth
        self._decodes_on = self._leaps and self._depth > 1 and on_plan is None and config.speculation is None
        self._inbox: list[_Input] = []
        self._num_undrained = 0
        self._ends_ns: deque[int] = deque()
        """When the steps in flight end on the device; 0 for empty ones, which cost host time only."""
        self._device_free_ns = 0
        self._delivered_ns = 0
        """When the tokens of the last pop reach the client."""
        self._idle = True
        self.idle_since_ns = 0
        self._leap: Leap | GrowthLeap | None = None
        self._leap_end: Event | None = None

    # ---- inputs: called in the ARRIVAL phase ----

    @property
    def load(self) -> int:
        """Requests running, waiting, or sent and not yet noticed."""
        return len(self.scheduler.running) + len(self.scheduler.waiting) + self._num_undrained

    def submit(self, request: Request, outcome: Outcome) -> None:
        """A request reaches the engine's input queue now."""
        self._num_undrained += 1
        self._take_in(request, outcome)

    def cancel(self, request: Request) -> None:
        """A cancel reaches the engine's input queue now; too late or twice, it has no effect."""
        self._take_in(request, None)

    def _take_in(self, request: Request, outcome: Outcome | None) -> None:
        now_ns, leap = self._timeline.now_ns, self._leap
        self._inbox.append((now_ns, request, outcome))
        if leap is not None:
            if leap.cut_ns != now_ns:  # else by another input at this instant
                self._cut_leap(leap, now_ns)
        elif self._idle:
            self._idle = False
            self._at(now_ns, SCHEDULE, self._on_schedule)

    def delivered_tokens(self, request: Request) -> int:
        """Output tokens of a request that have reached its client by now."""
        now_ns, ledger = self._timeline.now_ns, self.core.ledger
        is_late = now_ns < self._delivered_ns  # the tokens of the last pop are still on their way
        if request.place in (ELSEWHERE, PREFILLING):
            if is_late and request.last_token_ns == ledger.last_pop_ns:
                last = 1 if request.drafts is None else request.drafts.last_tokens
                return request.num_output_tokens - last
            return request.num_output_tokens
        if self._leap is not None and not is_late:
            return ledger.num_output_tokens(request, self._leap.first_pop_seeing(now_ns + 1))
        return ledger.num_output_tokens(request, -1 if is_late else 0)

    # ---- the loop ----

    def _at(self, time_ns: int, phase: Phase, callback: Callable[[Event], None]) -> Event:
        return self._timeline.at(time_ns, phase, self.index, callback)

    def _on_schedule(self, _event: Event) -> None:
        self._schedule(self._timeline.now_ns)

    def _schedule_at(self, time_ns: int) -> None:
        """Schedule once the host is ready; at once when nothing can happen until then."""
        if self._timeline.is_quiet_until(time_ns):
            self._schedule(time_ns)
        else:
            self._at(time_ns, SCHEDULE, self._on_schedule)

    def _schedule(self, now_ns: int) -> None:
        """Look at the inputs, plan a step and launch it, wait for the oldest step in flight, and again.

        What comes next is done here and now while nothing else can happen before it; else it goes on the timeline.
        """
        is_quiet_until, ends_ns, core = self._timeline.is_quiet_until, self._ends_ns, self.core
        while True:
            if self._inbox:
                self._drain(now_ns)
            ready_ns = -1
            if self._decodes_on and not self.scheduler.waiting and core.can_decode_on():
                ready_ns = self._decode_on(now_ns)
            if ready_ns < 0:
                if (shape := core.launch_decodes()) is not None:
                    ready_ns = self._launch_batch(shape, now_ns, _DECODES)
                elif self.scheduler.has_requests():
                    ready_ns = self._plan_and_launch(now_ns)
            if ready_ns >= 0:
                now_ns = ready_ns
            if ready_ns < 0 or len(ends_ns) == self._depth:  # wait for the oldest step in flight
                leap = self._leap
                if leap is not None:
                    if not is_quiet_until(leap.last_pop_ns):
                        self._await_leap(leap)
                        return
                    now_ns = self._finish_leap(leap)
                elif ends_ns:
                    end_ns = ends_ns[0] if ends_ns[0] > now_ns else now_ns
                    if not (self._leaps and is_quiet_until(end_ns)):
                        self._at(end_ns, STEP_END, self._on_step_end)
                        return
                    now_ns = self._handle_results(end_ns)
                else:
                    self._idle = True
                    self.idle_since_ns = now_ns
                    return
            if not is_quiet_until(now_ns):
                self._at(now_ns, SCHEDULE, self._on_schedule)
                return

    def _plan_and_launch(self, now_ns: int) -> int:
        """Plan a step request by request and launch it; returns when the host is ready again, -1 without a step."""
        plan = self._plan(now_ns)
        num_seqs = self.core.num_seqs(plan)
        while plan.preempted and not num_seqs and self._depth == 1:  # all were victims: once more
            plan = self._plan(now_ns)
            num_seqs = self.core.num_seqs(plan)
        if num_seqs:
            if self._decodes_on and not (plan.entries or plan.preempted) and self.core.can_decode_on():
                ready_ns = self._decode_on(now_ns, is_planned=True)
                if ready_ns >= 0:
                    return ready_ns
            shape = self.core.launch(plan)
            return (self._launch if plan.entries else self._launch_batch)(shape, now_ns, plan)
        self._refuse_deadlock(plan)
        if self._depth > 1:
            self.core.launch_nothing()
            self._ends_ns.append(0)
        return -1

    def _plan(self, now_ns: int) -> Plan:
        plan = self.core.plan()
        if self._on_plan is not None and plan.preempted and not self.core.num_seqs(plan):
            self._on_plan(plan, now_ns, now_ns)
        return plan

    def _refuse_deadlock(self, plan: Plan) -> None:
        busy = self.scheduler.running or plan.preempted or any(self._ends_ns)
        if len(self.scheduler.waiting) and not busy:
            name = self.scheduler.waiting.peek().request_id
            raise NotValidError(f"replica {self.index}: request {name} waits for KV blocks that an empty cache lacks")

    def _launch_batch(self, shape: StepShape, now_ns: int, plan: Plan) -> int:
        """Start a step of the decode batch alone, and the leap that begins with it; returns when the host is ready."""
        core, seqs = self.core, shape[0]
        host_ns = self._schedule_step_ns + seqs * self._schedule_sequence_ns
        start_ns = now_ns + host_ns
        if start_ns < self._device_free_ns:
            start_ns = self._device_free_ns
        described = self._described(seqs, 0, 0, shape[5], plan)
        pops = core.num_pops_unchanged() if self._leaps and not plan.preempted else 1
        if pops > 1 and core.speculation is None:
            duration_ns = self._begin_leap(shape, self._model.decode_run(shape, pops), pops, start_ns, described)
        elif pops > 1:
            duration_ns = self._begin_drafting_leap(shape, pops, start_ns, described)
        else:
            duration_ns = self._model.step_ns(shape)
            in_domain = self._model.in_domain(shape)
            self._step_rows += pack_step(start_ns, 1, duration_ns, 0, duration_ns, 0, *described, in_domain)
        return self._start(start_ns, duration_ns, now_ns + host_ns, plan)

    def _decode_on(self, now_ns: int, *, is_planned: bool = False) -> int:
        """Leap from change to change while nobody does anything but decode; see `EngineCore.can_decode_on`.

        Most leaps of an asynchronous engine are over as soon as they begin: the device sets the pace, and nothing else
        can happen before the last pop, so nobody can ask how far such a leap is or cut it short. The same goes for a
        single step. The first that does not end so is left in `_leap`, or on the device. `is_planned`: the next step's
        blocks are taken, and no other follows it here.

        Returns when the host is ready again; -1 where blocks or tokens may not suffice for all, or nobody decodes.
        """
        core, timeline, model = self.core, self._timeline, self._model
        ledger, scheduler, kv = core.ledger, self.scheduler, self.scheduler.kv
        batch, flying, most_seqs, ready_ns = ledger.batch, core.in_flight[0], core.most_decodes, -1
        while True:
            step = ledger.launched + 1
            if ledger.joining or (ledger.skips and ledger.skips[0][0] <= step):
                ledger.open_step(step)
            seqs = batch.seqs
            if not seqs or seqs > most_seqs:
                return ready_ns
            taken = 0 if is_planned else batch.blocks_taken(step)
            free_blocks = kv.num_free_blocks - taken
            pops = ledger.pops_until_change(step)
            if pops * seqs > free_blocks:
                if free_blocks < 0:
                    return ready_ns
                pops = 1 + batch.steps_within_blocks(step, free_blocks, pops - 1)
            shape = batch.shape(step)
            run = model.decode_run(shape, pops)
            steps, first_ns, increment_ns, in_domain = run
            last = steps - 1
            last_ns = first_ns + last * increment_ns
            host_ns = self._schedule_step_ns + seqs * self._schedule_sequence_ns
            first_update_ns = self._update_step_ns + flying.num_seqs * self._update_sequence_ns
            update_ns = self._update_step_ns + seqs * self._update_sequence_ns
            start_ns = now_ns + host_ns
            if start_ns < self._device_free_ns:
                start_ns = self._device_free_ns
            last_pop_ns = start_ns + (first_ns + last_ns - increment_ns) * last // 2
            is_over = timeline.is_quiet_until(last_pop_ns)
            if last:
                pace_ns = host_ns + (first_update_ns if first_update_ns > update_ns else update_ns)
                is_over &= (first_ns if increment_ns > 0 else last_ns) >= pace_ns
            kv.take(taken)
            scheduler.has_finished_unreported = False
            held, cached = kv.num_usable_blocks - free_blocks, kv.num_cached_free_blocks()
            if is_over or pops == 1:
                self._step_rows += pack_step(
                    start_ns, steps, first_ns, increment_ns, first_ns, increment_ns,
                    seqs, 0, 0, 0, len(scheduler.running), len(scheduler.waiting), held, cached, 0, in_domain,
                )  # fmt: skip
            if not is_over:
                core.begin_step(step)
                if pops > 1:
                    described = (seqs, 0, 0, 0, len(scheduler.running), len(scheduler.waiting), held, cached, 0)
                    first_ns = self._begin_leap(shape, run, pops, start_ns, described)
                return self._start(start_ns, first_ns, now_ns + host_ns, _DECODES)
            delivery = core.leap_on(last, start_ns, last_pop_ns)
            delivered_ns = last_pop_ns + first_update_ns
            if last:
                self._gap_rows += pack_gap(start_ns + first_ns, last, first_ns, increment_ns, seqs, 0)
                delivered_ns = last_pop_ns + update_ns
            self._device_free_ns = self._ends_ns[0] = last_pop_ns + last_ns
            self._hand_out(delivery, last_pop_ns, delivered_ns)
            if is_planned or self._inbox or not timeline.is_quiet_until(delivered_ns):
                return delivered_ns
            ready_ns = now_ns = delivered_ns

    def _begin_leap(self, shape: StepShape, run: Run, pops: int, start_ns: int, described: tuple[int, ...]) -> int:
        """The step just launched begins a leap; returns how long it takes. `run` is what the model says of it."""
        is_async = self._depth > 1
        leap = Leap(self._model, shape, run, pops, start_ns, *self._host_ns(shape[0]), is_async, described)
        self._leap = leap
        return leap.first_duration_ns

    def _begin_drafting_leap(self, shape: StepShape, pops: int, start_ns: int, described: tuple[int, ...]) -> int:
        """`_begin_leap` for a batch that drafts."""
        core, is_async = self.core, self._depth > 1
        steps = core.coming_steps(pops)
        durations_ns, in_domain = self._draft_steps(shape, steps)
        counts = steps.draft_tokens, core.coming_extra_tokens(pops)
        leap = GrowthLeap(durations_ns, in_domain, *counts, start_ns, *self._host_ns(shape[0]), is_async, described)
        self._leap = leap
        return leap.first_duration_ns

    def _host_ns(self, seqs: int) -> tuple[int, int, int]:
        """In a leap of `seqs` sequences: host time for planning a step, for the first results, and for the others."""
        first = self.core.in_flight[0].num_seqs if self._depth > 1 else seqs
        schedule_ns = self._schedule_step_ns + seqs * self._schedule_sequence_ns
        return schedule_ns, self._update_ns(first), self._update_ns(seqs)

    def _launch(self, shape: StepShape, now_ns: int, plan: Plan) -> int:
        """Start a planned step; returns when the host is ready again."""
        decodes, _, _, chunks, _, draft_tokens, _ = shape
        seqs, prefill_tokens = decodes + len(chunks), 0
        for new, _ in chunks:
            prefill_tokens += new
        ready_ns = now_ns + self._schedule_step_ns + seqs * self._schedule_sequence_ns
        start_ns = ready_ns if ready_ns > self._device_free_ns else self._device_free_ns
        for entry in plan.entries:
            if entry[0].scheduled_ns < 0:
                entry[0].scheduled_ns = start_ns
        duration_ns = self._model.step_ns(shape)
        described = self._described(decodes, len(chunks), prefill_tokens, draft_tokens, plan)
        in_domain = self._model.in_domain(shape)
        self._step_rows += pack_step(start_ns, 1, duration_ns, 0, duration_ns, 0, *described, in_domain)
        return self._start(start_ns, duration_ns, ready_ns, plan)

    def _described(
        self, decode_seqs: int, prefill_seqs: int, prefill_tokens: int, draft_tokens: int, plan: Plan
    ) -> tuple[int, ...]:
        """The columns of the steps table from decode_seqs to preempted, of the step just planned."""
        scheduler, kv = self.scheduler, self.scheduler.kv
        running, waiting, preempted = len(scheduler.running), len(scheduler.waiting), len(plan.preempted)
        held, cached = kv.num_usable_blocks - kv.num_free_blocks, kv.num_cached_free_blocks()
        return decode_seqs, prefill_seqs, prefill_tokens, draft_tokens, running, waiting, held, cached, preempted

    def _start(self, start_ns: int, duration_ns: int, ready_ns: int, plan: Plan) -> int:
        """The step just launched runs on the device."""
        self._device_free_ns = end_ns = start_ns + duration_ns
        self._ends_ns.append(end_ns)
        if self._on_plan is not None:
            self._on_plan(Plan(self.core.all_entries(plan), plan.preempted), start_ns, end_ns)
        return ready_ns

    def _on_step_end(self, _event: Event) -> None:
        self._schedule_at(self._handle_results(self._timeline.now_ns))

    def _handle_results(self, now_ns: int) -> int:
        """The oldest step in flight is back: cancels first, then its tokens; returns when the host is ready again."""
        if self._inbox:
            self._take_cancels(now_ns)
        self._ends_ns.popleft()
        delivered_ns = now_ns + self._update_ns(self.core.in_flight[0].num_seqs)
        self._hand_out(self.core.deliver(now_ns), now_ns, delivered_ns)
        return delivered_ns

    def _update_ns(self, seqs: int) -> int:
        """How long the host needs for the results of a step of so many sequences."""
        return self._update_step_ns + seqs * self._update_sequence_ns

    def _hand_out(self, delivery: Delivery, now_ns: int, delivered_ns: int) -> None:
        """Tell the client side what the end of a step brought."""
        self._delivered_ns = delivered_ns
        milestones, finished = delivery
        for request in milestones:
            self._listener.on_milestone(request, delivered_ns)
        is_alone = len(finished) == 1 and not milestones
        for request in finished:
            request.finish_ns, request.delivered_ns = now_ns, delivered_ns
            self._listener.on_finish(request, delivered_ns, is_alone=is_alone)

    def _drain(self, now_ns: int) -> None:
        core = self.core
        for _, request, outcome in self._inbox:
            if outcome is not None:
                request.queued_ns = now_ns
                self._num_undrained -= 1
                core.add(request, outcome)
            elif request.status in _ALIVE:
                self._cancel(request, now_ns)
        self._inbox.clear()

    def _take_cancels(self, now_ns: int) -> None:
        for time_ns, request, outcome in self._inbox:
            if outcome is None and time_ns < now_ns and request.queued_ns >= 0 and request.status in _ALIVE:
                self._cancel(request, now_ns)

    def _cancel(self, request: Request, now_ns: int) -> None:
        self.core.cancel(request)
        request.finish_ns = now_ns

    # ---- leaping ----

    def _await_leap(self, leap: Leap | GrowthLeap) -> None:
        phase = STEP_END
        if not self._schedule_step_ns and leap.last_pop_ns == _last_look_ns(leap):
            # A host that needs no time to schedule but sets the pace pops a step as soon as it has launched the next:
            # then the schedule at this instant, and the inputs that it sees, come first.
            phase = SCHEDULE
        self._leap_end = self._timeline.at(leap.last_pop_ns, phase, self.index, self._on_leap_end)

    def _cut_leap(self, leap: Leap | GrowthLeap, now_ns: int) -> None:
        """An input came: end the leap at the first schedule that can see it."""
        leap.cut_ns = now_ns
        pops = leap.first_pop_seeing(now_ns) + 1
        if pops == leap.pops:
            return
        leap.cut(pops)
        assert self._leap_end is not None
        self._timeline.cancel(self._leap_end)
        if leap.last_pop_ns >= now_ns:
            self._await_leap(leap)
        else:  # its tokens are back already and are being handled; nothing can have finished with them
            ready_ns = self._finish_leap(leap)
            self._at(ready_ns, SCHEDULE, self._on_schedule)  # more inputs may come at this instant

    def _on_leap_end(self, _event: Event) -> None:
        assert self._leap is not None
        ready_ns = self._finish_leap(self._leap)
        if self._timeline.is_quiet_until(ready_ns):
            self._schedule(ready_ns)
        else:
            self._at(ready_ns, SCHEDULE, self._on_schedule)

    def _finish_leap(self, leap: Leap | GrowthLeap) -> int:
        """All pops of the leap have happened; returns when the host is ready again."""
        self._leap = None
        pops, core = leap.pops, self.core
        if pops > 1:
            self._device_free_ns = self._ends_ns[-1] = leap.last_end_ns
            if not self._inbox:
                seqs, pop_ns = core.in_flight[-1].num_seqs, leap.last_pop_ns
                delivery = core.finish_leap(pops, leap.first_pop_ns, pop_ns)
                leap.record(self._recorder, pops)
                self._ends_ns.popleft()
                delivered_ns = pop_ns + self._update_ns(seqs)
                self._hand_out(delivery, pop_ns, delivered_ns)
                return delivered_ns
            # An input may be a cancel, which acts before the last pop's tokens are handled.
            core.leap(pops - 1, leap.first_pop_ns, leap.pop_ns(pops - 2))
        leap.record(self._recorder, pops - 1)
        return self._handle_results(leap.last_pop_ns)


_DECODES = Plan()
"""The plan of a step in which nobody does anything but decode."""


def _last_look_ns(leap: Leap | GrowthLeap) -> int:
    """When the engine looks at its inputs for the last time before the last pop; -1 when there is one pop only."""
    if leap.pops < 2:
        return -1
    return leap.pop_ns(leap.pops - 2) + (leap.update_ns if leap.pops > 2 else leap.first_update_ns)
