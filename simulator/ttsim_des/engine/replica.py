"""One engine on the timeline: takes inputs, launches steps, waits for the device and hands out tokens.

Synchronous: schedule, execute, update, again. Asynchronous (vLLM's default on GPUs): a queue of two steps, so that
step k+1 is scheduled before the tokens of step k are known and host time hides behind the device. Both are one
loop here, with one or two steps in flight. Inputs are looked at between steps only, cancels also when a step's
result arrives, before its outputs are handled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.core import EngineCore
from ttsim_des.engine.leap import Leap, async_pieces, decode_runs, sync_pieces
from ttsim_des.engine.request import Outcome, Place, Request, Status
from ttsim_des.engine.scheduler import Plan
from ttsim_des.errors import NotValidError
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.shape import StepModel, StepShape
from ttsim_des.records.recorder import StepRecorder, StepRow
from ttsim_des.timeline import Event, Phase, Timeline

Stepping = Literal["leap", "step"]
_ALIVE = (Status.WAITING, Status.RUNNING)


class Listener(Protocol):
    """Who is told what comes out of an engine; `delivered_ns` is when the client side can act on it."""

    def on_finish(self, request: Request, delivered_ns: int) -> None:
        """A request has its last token, or its prefill when it asked for none."""
        ...

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        """A request has reached a token count that somebody asked to be told of."""
        ...


class _Input(NamedTuple):
    time_ns: int
    request: Request
    outcome: Outcome | None
    """None: a cancel."""


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
        self.core = EngineCore(config)
        self.scheduler = self.core.scheduler
        self._block_size = config.block_size
        self._model, self._host = model, host
        self._timeline, self._listener, self._recorder = timeline, listener, recorder
        self._leaps, self._on_plan = stepping == "leap", on_plan
        self._depth = self.core.depth
        self._inbox: list[_Input] = []
        self._num_undrained = 0
        self._ends_ns: deque[int] = deque()
        """When the steps in flight end on the device; 0 for empty ones, which cost host time only."""
        self._device_free_ns = 0
        self._delivered_ns = 0
        """When the tokens of the last pop reach the client."""
        self._idle = True
        self.idle_since_ns = 0
        self._leap: Leap | None = None
        self._leap_end: Event | None = None

    # ---- inputs: called in the ARRIVAL phase ----

    @property
    def load(self) -> int:
        """Requests running, waiting, or sent and not yet noticed."""
        return len(self.scheduler.running) + len(self.scheduler.waiting) + self._num_undrained

    def submit(self, request: Request, outcome: Outcome) -> None:
        """A request reaches the engine's input queue now."""
        self._num_undrained += 1
        self._receive(request, outcome)

    def cancel(self, request: Request) -> None:
        """A cancel reaches the engine's input queue now; too late or twice, it has no effect."""
        self._receive(request, None)

    def _receive(self, request: Request, outcome: Outcome | None) -> None:
        now_ns = self._timeline.now_ns
        self._inbox.append(_Input(now_ns, request, outcome))
        if self._idle:
            self._idle = False
            self._at(now_ns, Phase.SCHEDULE, self._on_schedule)
        elif self._leap is not None:
            self._cut_leap(self._leap, now_ns)

    def delivered_tokens(self, request: Request) -> int:
        """Output tokens of a request that have reached its client by now."""
        now_ns, ledger = self._timeline.now_ns, self.core.ledger
        is_late = now_ns < self._delivered_ns  # the tokens of the last pop are still on their way
        if request.place in (Place.ELSEWHERE, Place.PREFILLING):
            return request.num_output_tokens - (is_late and request.last_token_ns == ledger.last_pop_ns)
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
            self._at(time_ns, Phase.SCHEDULE, self._on_schedule)

    def _schedule(self, now_ns: int) -> None:
        """Look at the inputs, plan a step and launch it; then wait for the oldest step in flight."""
        if self._inbox:
            self._drain(now_ns)
        if self.scheduler.has_requests():
            plan = self._plan(now_ns)
            num_seqs = self.core.num_seqs(plan)
            while plan.preempted and not num_seqs and self._depth == 1:  # all were victims: once more
                plan = self._plan(now_ns)
                num_seqs = self.core.num_seqs(plan)
            if num_seqs:
                now_ns += self._launch(plan, num_seqs, now_ns)
                if len(self._ends_ns) < self._depth:
                    self._schedule_at(now_ns)
                    return
                if self._leap is not None:
                    self._await_leap(self._leap)
                    return
            else:
                self._refuse_deadlock(plan)
                if self._depth > 1:
                    self.core.launch_nothing()
                    self._ends_ns.append(0)
        if self._ends_ns:
            self._at(max(now_ns, self._ends_ns[0]), Phase.STEP_END, self._on_step_end)
            return
        self._idle = True
        self.idle_since_ns = now_ns

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

    def _launch(self, plan: Plan, num_seqs: int, now_ns: int) -> int:
        """Start a planned step behind those in flight; returns the host time that it took."""
        core = self.core
        shape = core.launch(plan)
        host_ns = self._host.schedule_ns(num_seqs)
        start_ns = max(now_ns + host_ns, self._device_free_ns)
        for entry in plan.entries:
            if entry.request.scheduled_ns < 0:
                entry.request.scheduled_ns = start_ns
        row = self._describe(plan, shape)
        pops = core.num_pops_unchanged(plan) if self._leaps else 1
        if pops > 1:
            leap = self._leap = self._plan_leap(shape, pops, host_ns, start_ns, row)
            duration_ns = leap.pieces[0].duration_ns
        else:
            duration_ns = self._model.step_ns(shape)
            self._recorder.steps(row, start_ns, 1, duration_ns, 0, duration_ns, 0)
        self._device_free_ns = start_ns + duration_ns
        self._ends_ns.append(self._device_free_ns)
        if self._on_plan is not None:
            written_out = Plan(core.all_entries(plan), plan.preempted)
            self._on_plan(written_out, start_ns, self._device_free_ns)
        return host_ns

    def _on_step_end(self, _event: Event) -> None:
        self._finish_step(self._timeline.now_ns)

    def _finish_step(self, now_ns: int) -> None:
        self._schedule_at(self._handle_results(now_ns))

    def _handle_results(self, now_ns: int) -> int:
        """The oldest step in flight is back: cancels first, then its tokens; returns when the host is ready again."""
        if self._inbox:
            self._take_cancels(now_ns)
        self._ends_ns.popleft()
        update_ns = self._host.update_ns(self.core.in_flight[0].num_seqs)
        delivery = self.core.deliver(now_ns)
        for gap_ns, seqs in delivery.gaps.items():
            self._recorder.gaps(now_ns, 1, gap_ns, 0, seqs)
        for request in delivery.milestones:
            self._listener.on_milestone(request, now_ns + update_ns)
        for request in delivery.finished:
            request.finish_ns, request.delivered_ns = now_ns, now_ns + update_ns
            self._listener.on_finish(request, now_ns + update_ns)
        self._delivered_ns = now_ns + update_ns
        return self._delivered_ns

    def _drain(self, now_ns: int) -> None:
        for _, request, outcome in self._inbox:
            if outcome is not None:
                request.queued_ns = now_ns
                self._num_undrained -= 1
                self.core.add(request, outcome)
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

    def _plan_leap(self, shape: StepShape, pops: int, schedule_ns: int, start_ns: int, row: StepRow) -> Leap:
        """The times of the next `pops` pops, the step that starts at `start_ns` being the first launched."""
        durations = decode_runs(self._model, shape, pops)
        update_ns = self._host.update_ns(shape.decode_seqs)
        if self._depth == 1:
            pieces = sync_pieces(durations, start_ns, schedule_ns + update_ns)
            return Leap(pops, False, pieces, update_ns, update_ns, row)
        first_update_ns = self._host.update_ns(self.core.in_flight[0].num_seqs)
        pieces = async_pieces(durations, start_ns, schedule_ns + first_update_ns, schedule_ns + update_ns)
        return Leap(pops, True, pieces, first_update_ns, update_ns, row)

    def _await_leap(self, leap: Leap) -> None:
        leap.last_pop_ns = leap.pop_ns(leap.pops - 1)
        # A host that needs no time to schedule but sets the pace pops a step as soon as it has launched the next: then
        # the schedule at this instant, and the inputs that it sees, come first.
        phase = Phase.SCHEDULE if leap.last_pop_ns == leap.last_look_ns() else Phase.STEP_END
        self._leap_end = self._at(leap.last_pop_ns, phase, self._on_leap_end)

    def _cut_leap(self, leap: Leap, now_ns: int) -> None:
        """An input came: end the leap at the first schedule that can see it."""
        if leap.cut_ns == now_ns:
            return  # by another input at this instant
        leap.cut_ns = now_ns
        pops = leap.first_pop_seeing(now_ns) + 1
        if pops == leap.pops:
            return
        leap.pops = pops
        assert self._leap_end is not None
        self._timeline.cancel(self._leap_end)
        leap.last_pop_ns = leap.pop_ns(pops - 1)
        if leap.last_pop_ns >= now_ns:
            self._await_leap(leap)
        else:  # its tokens are back already and are being handled; nothing can have finished with them
            ready_ns = self._handle_results(self._end_leap(leap))
            self._at(ready_ns, Phase.SCHEDULE, self._on_schedule)  # more inputs may come at this instant

    def _on_leap_end(self, _event: Event) -> None:
        assert self._leap is not None
        self._finish_step(self._end_leap(self._leap))

    def _end_leap(self, leap: Leap) -> int:
        """Catch up with all pops of the leap but the last; returns when that one is, to be handled like any other."""
        self._leap = None
        self._record_leap(leap)
        extra = leap.pops - 1
        if extra:
            gaps: dict[int, int] = {}
            self.core.leap(extra, leap.pop_ns(0), leap.pop_ns(extra - 1), gaps)
            self._record_gaps(leap, gaps)
            self._device_free_ns = leap.end_ns(extra)
            self._ends_ns[-1] = self._device_free_ns
        return leap.last_pop_ns

    # ---- records ----

    def _describe(self, plan: Plan, shape: StepShape) -> StepRow:
        kv, chunks = self.scheduler.kv, shape.prefill_chunks
        return StepRow(
            shape.decode_seqs,
            len(chunks),
            sum(chunk.new for chunk in chunks) if chunks else 0,
            len(self.scheduler.running),
            len(self.scheduler.waiting),
            kv.num_usable_blocks - kv.num_free_blocks,
            kv.num_cached_free_blocks,
            len(plan.preempted),
            self._model.in_domain(shape),
        )

    def _record_leap(self, leap: Leap) -> None:
        row, recorder = leap.row, self._recorder
        free_blocks = self.scheduler.kv.num_usable_blocks - row.held_blocks
        for piece in leap.clipped(0, leap.pops):
            recorder.steps(row, *piece[1:])
            # On average: which blocks of the free queue are taken within a leap, nobody looks at.
            taken = min(free_blocks, piece.steps * row.decode_seqs // self._block_size)
            free_blocks -= taken
            cached_blocks = row.cached_blocks if row.cached_blocks < free_blocks else free_blocks
            row = row._replace(held_blocks=row.held_blocks + taken, cached_blocks=cached_blocks)

    def _record_gaps(self, leap: Leap, first_gaps: dict[int, int]) -> None:
        """The gaps before all pops of the leap but the last; those before the first are given."""
        first_pop_ns, seqs, recorder = leap.pop_ns(0), leap.row.decode_seqs, self._recorder
        for gap_ns, waiting in first_gaps.items():
            recorder.gaps(first_pop_ns, 1, gap_ns, 0, waiting)
        for index, start_ns, steps, gap_ns, increment_ns, _, _ in leap.clipped(
            0 if leap.is_async else 1, leap.pops - 2
        ):
            delivered_ns = start_ns + gap_ns if leap.is_async else leap.pop_ns(index)
            recorder.gaps(delivered_ns, steps, gap_ns, increment_ns, seqs)
