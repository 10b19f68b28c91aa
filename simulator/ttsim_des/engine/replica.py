"""One engine: the loop that takes inputs, schedules a step, waits for the device and hands out tokens.

Synchronous: schedule, execute, update, again. Asynchronous (vLLM's default on GPUs): a queue of two steps, so that
step k+1 is scheduled before the tokens of step k are known and host time hides behind the device. Both are one
loop here, with `depth` steps in flight. Inputs are looked at between steps only, cancels also when a
step's result arrives, before its outputs are handled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.horizon import num_final_tokens, num_pops_unchanged
from ttsim_des.engine.leap import Leap, clip_runs, decode_runs, series_sum
from ttsim_des.engine.request import Outcome, Request, Scheduled, Status
from ttsim_des.engine.scheduler import Plan, Scheduler
from ttsim_des.errors import NotValidError
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.shape import PrefillChunk, Run, StepModel, StepShape
from ttsim_des.records.recorder import StepRecorder, StepRow
from ttsim_des.timeline import Phase, Timeline

Stepping = Literal["leap", "step"]


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
    is_cancel: bool


@dataclass(slots=True)
class _InFlight:
    """A step on its way through the device; empty ones (nothing scheduled) only cost host time."""

    entries: list[Scheduled]
    end_ns: int


class Replica:
    """One engine on the timeline.

    `on_plan(plan, start_ns, end_ns)`, when given, sees every plan that computes or preempts something as it is
    made; where stepping is "leap" a plan may stand for many steps.
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
        self.scheduler = Scheduler(config)
        self._config, self._model, self._host = config, model, host
        self._timeline, self._listener, self._recorder = timeline, listener, recorder
        self._stepping, self._on_plan = stepping, on_plan
        self._depth = 2 if config.async_scheduling else 1
        self._outcomes: dict[int, Outcome] = {}
        self._inbox: list[_Input] = []
        self._num_undrained = 0
        self._in_flight: deque[_InFlight] = deque()
        self._device_free_ns = 0
        self._idle = True
        self._leap: Leap | None = None
        self._leap_version = 0

    # ---- inputs: called in the ARRIVAL phase ----

    @property
    def load(self) -> int:
        """Requests running, waiting, or sent and not yet noticed."""
        return len(self.scheduler.running) + len(self.scheduler.waiting) + self._num_undrained

    def submit(self, request: Request, outcome: Outcome) -> None:
        """A request reaches the engine's input queue now."""
        self._outcomes[request.request_id] = outcome
        self._num_undrained += 1
        self._receive(request, is_cancel=False)

    def cancel(self, request: Request) -> None:
        """A cancel reaches the engine's input queue now; too late or twice, it has no effect."""
        self._receive(request, is_cancel=True)

    def _receive(self, request: Request, *, is_cancel: bool) -> None:
        now_ns = self._timeline.now_ns
        self._inbox.append(_Input(now_ns, request, is_cancel))
        if self._idle:
            self._idle = False
            self._at(now_ns, Phase.SCHEDULE, self._on_schedule)
        elif self._leap is not None:
            self._cut_leap(now_ns)

    # ---- the loop ----

    def _at(self, time_ns: int, phase: Phase, callback: Callable[[], None]) -> None:
        self._timeline.at(time_ns, phase, self.index, callback)

    def _on_schedule(self) -> None:
        now_ns = self._timeline.now_ns
        self._drain()
        if self.scheduler.has_requests():
            plan = self._plan(now_ns)
            while plan.preempted and not plan.entries and self._depth == 1:  # everybody was a victim: once more
                plan = self._plan(now_ns)
            if plan.entries:
                now_ns += self._launch(plan, now_ns)
                if len(self._in_flight) < self._depth:
                    self._at(now_ns, Phase.SCHEDULE, self._on_schedule)
                    return
                if self._leap is not None:
                    self._await_leap()
                    return
            else:
                self._refuse_deadlock(plan)
                if self._depth > 1:
                    self._in_flight.append(_InFlight([], 0))
        if self._in_flight:
            self._at(max(now_ns, self._in_flight[0].end_ns), Phase.STEP_END, self._on_step_end)
            return
        self._idle = True

    def _plan(self, now_ns: int) -> Plan:
        plan = self.scheduler.schedule()
        if plan.preempted and not plan.entries and self._on_plan is not None:
            self._on_plan(plan, now_ns, now_ns)
        return plan

    def _refuse_deadlock(self, plan: Plan) -> None:
        busy = self.scheduler.running or plan.preempted or any(step.entries for step in self._in_flight)
        if len(self.scheduler.waiting) and not busy:
            name = self.scheduler.waiting.peek().request_id
            raise NotValidError(f"replica {self.index}: request {name} waits for KV blocks that an empty cache lacks")

    def _launch(self, plan: Plan, now_ns: int) -> int:
        """Start a planned step behind those in flight; returns the host time that it took."""
        entries = plan.entries
        shape = _shape(entries)
        host_ns = self._host.schedule_ns(len(entries))
        start_ns = max(now_ns + host_ns, self._device_free_ns)
        for entry in entries:
            if entry.request.scheduled_ns < 0:
                entry.request.scheduled_ns = start_ns
        duration_ns = self._model.step_ns(shape)
        end_ns = self._device_free_ns = start_ns + duration_ns
        if self._on_plan is not None:
            self._on_plan(plan, start_ns, end_ns)
        row = self._describe(plan, shape)
        if self._stepping == "leap":
            ahead = self._in_flight[0].entries if self._in_flight else []
            pops = num_pops_unchanged(plan, ahead, self.scheduler, self._outcomes)
            if pops > 1:
                self._leap = self._plan_leap(shape, pops, now_ns + host_ns, start_ns, row)
        if self._leap is None:
            self._recorder.steps(row, start_ns, Run(1, duration_ns, 0), Run(1, duration_ns, 0))
        self._in_flight.append(_InFlight(entries, end_ns))
        return host_ns

    def _on_step_end(self) -> None:
        self._finish_step(self._timeline.now_ns)

    def _finish_step(self, now_ns: int) -> None:
        """The oldest step in flight is back: cancels first, then its tokens; then the next schedule."""
        self._take_cancels(now_ns)
        entries = self._in_flight.popleft().entries
        update_ns = self._host.update_ns(len(entries))
        self._deliver(entries, now_ns, now_ns + update_ns)
        self._at(now_ns + update_ns, Phase.SCHEDULE, self._on_schedule)

    def _drain(self) -> None:
        for _, request, is_cancel in self._inbox:
            if not is_cancel:
                request.queued_ns = self._timeline.now_ns
                self._num_undrained -= 1
                self.scheduler.add(request)
            elif request.status in (Status.WAITING, Status.RUNNING):
                self._end(request, Status.CANCELLED, self._timeline.now_ns)
        self._inbox.clear()

    def _take_cancels(self, now_ns: int) -> None:
        for time_ns, request, is_cancel in self._inbox:
            known = request.queued_ns >= 0 and request.status in (Status.WAITING, Status.RUNNING)
            if is_cancel and time_ns < now_ns and known:
                self._end(request, Status.CANCELLED, now_ns)

    def _end(self, request: Request, status: Status, now_ns: int) -> None:
        self.scheduler.finish(request, status)
        request.finish_ns = now_ns
        del self._outcomes[request.request_id]

    def _deliver(self, entries: list[Scheduled], now_ns: int, delivered_ns: int) -> None:
        gaps: dict[int, int] = {}
        for entry in entries:
            request = entry.request
            if not entry.samples or request.status in (Status.FINISHED, Status.CANCELLED):
                continue
            is_stale = entry.epoch != request.preemptions
            if request.max_tokens:
                request.num_output_tokens += 1
                _stamp_token(request, now_ns, gaps)
                if self._depth > 1 and not is_stale:
                    request.num_output_placeholders -= 1
                    self.scheduler.kv.register(request, request.num_computed_tokens - request.num_output_placeholders)
            elif is_stale:
                continue
            self._tell(request, now_ns, delivered_ns)
        for gap_ns, seqs in gaps.items():
            self._recorder.gaps(now_ns, 1, gap_ns, 0, seqs)

    def _tell(self, request: Request, now_ns: int, delivered_ns: int) -> None:
        """Has the request ended, or passed a milestone?"""
        outcome = self._outcomes[request.request_id]
        num_output = request.num_output_tokens
        while outcome.milestones and outcome.milestones[0] <= num_output:
            outcome.milestones.pop(0)
            self._listener.on_milestone(request, delivered_ns)
        if num_output < num_final_tokens(request, outcome, self._config.max_model_len):
            return
        request.finish_reason = "stop" if num_output >= outcome.output_tokens else "length"
        request.overshoot_tokens = request.num_output_placeholders
        self._end(request, Status.FINISHED, now_ns)
        self._listener.on_finish(request, delivered_ns)

    # ---- leaping ----

    def _plan_leap(self, shape: StepShape, pops: int, ready_ns: int, start_ns: int, row: StepRow) -> Leap | None:
        """The times of the next `pops` pops, or fewer, or None where the device is not the slower part."""
        durations = list(decode_runs(self._model, shape, pops))
        host_ns = self._host.schedule_ns(shape.decode_seqs) + self._host.update_ns(shape.decode_seqs)
        if self._depth == 1:
            first_pop_ns = start_ns + durations[0].first_ns
            periods = [Run(n, first + host_ns, step) for n, first, step in clip_runs(durations, 1, pops - 1)]
            return Leap(pops, first_pop_ns, periods, start_ns, durations, row, host_ns)
        first_pop_ns = self._in_flight[0].end_ns
        if ready_ns > first_pop_ns:
            return None
        hidden = 0
        for run in durations:
            if min(run.first_ns, run.first_ns + (run.steps - 1) * run.increment_ns) < host_ns:
                break
            hidden += run.steps
        if hidden < 2:
            return None
        durations = list(clip_runs(durations, 0, hidden))
        return Leap(hidden, first_pop_ns, durations, start_ns, durations, row, 0)

    def _await_leap(self) -> None:
        assert self._leap is not None
        self._leap_version += 1
        version = self._leap_version
        self._at(self._leap.pop_ns(self._leap.pops - 1), Phase.STEP_END, lambda: self._on_leap_end(version))

    def _cut_leap(self, now_ns: int) -> None:
        """An input came: end the leap at the first schedule that can see it."""
        leap = self._leap
        assert leap is not None
        update_ns = self._host.update_ns(len(self._in_flight[0].entries))
        pops = leap.first_pop_not_before(now_ns - update_ns) + 1
        if pops == leap.pops:
            return
        leap.pops = pops
        if leap.pop_ns(pops - 1) >= now_ns:
            self._await_leap()
        else:  # its tokens are back already and are being handled; nothing can have finished with them
            self._leap_version += 1
            self._end_leap(leap)

    def _on_leap_end(self, version: int) -> None:
        if version == self._leap_version:
            assert self._leap is not None
            self._end_leap(self._leap)

    def _end_leap(self, leap: Leap) -> None:
        """Catch up with all pops of the leap but the last, then handle that one like any other."""
        self._leap = None
        self._record_leap(leap)
        entries = self._in_flight[-1].entries
        extra = leap.pops - 1
        if extra:
            self._advance(entries, extra, leap)
            self._in_flight[0].entries = entries
            newest = self._in_flight[-1]
            newest.end_ns = self._device_free_ns = leap.first_start_ns + self._span_ns(leap)
        self._finish_step(leap.pop_ns(extra))

    def _span_ns(self, leap: Leap) -> int:
        """From the start of the leap's first step to the end of its last, host time between steps included."""
        if self._depth == 1:
            return leap.pop_ns(leap.pops - 1) - leap.first_start_ns
        return sum(series_sum(*run) for run in clip_runs(leap.durations, 0, leap.pops))

    def _advance(self, entries: list[Scheduled], extra: int, leap: Leap) -> None:
        kv = self.scheduler.kv
        gaps: dict[int, int] = {}
        last_pop_ns = leap.pop_ns(extra - 1)
        for entry in entries:
            request = entry.request
            _stamp_token(request, leap.first_pop_ns, gaps)
            request.last_token_ns = last_pop_ns
            request.num_output_tokens += extra
            request.num_computed_tokens += extra
            request.computed_tokens += extra
            kv.allocate(request, request.num_computed_tokens)
            kv.register(request, min(request.num_computed_tokens, request.num_tokens))
        for gap_ns, seqs in gaps.items():
            self._recorder.gaps(leap.first_pop_ns, 1, gap_ns, 0, seqs)
        time_ns = leap.first_pop_ns
        for run in clip_runs(leap.periods, 0, extra - 1):
            self._recorder.gaps(time_ns + run.first_ns, run.steps, run.first_ns, run.increment_ns, len(entries))
            time_ns += series_sum(*run)

    # ---- records ----

    def _describe(self, plan: Plan, shape: StepShape) -> StepRow:
        kv = self.scheduler.kv
        return StepRow(
            decode_seqs=shape.decode_seqs,
            prefill_seqs=len(shape.prefill_chunks),
            prefill_tokens=sum(chunk.new for chunk in shape.prefill_chunks),
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            held_blocks=kv.num_usable_blocks - kv.num_free_blocks,
            cached_blocks=kv.num_cached_free_blocks,
            preempted=len(plan.preempted),
            in_domain=self._model.in_domain(shape),
        )

    def _record_leap(self, leap: Leap) -> None:
        start_ns, row = leap.first_start_ns, leap.row
        between_ns, block_size = leap.host_between_ns, self._config.block_size
        for run in clip_runs(leap.durations, 0, leap.pops):
            period = Run(run.steps, run.first_ns + between_ns, run.increment_ns)
            self._recorder.steps(row, start_ns, period, run)
            start_ns += series_sum(*period)
            # On average; which blocks of the free queue are taken within a leap, nobody looked at.
            taken = run.steps * row.decode_seqs // block_size
            cached = min(row.cached_blocks, self.scheduler.kv.num_free_blocks - taken)
            row = row._replace(held_blocks=row.held_blocks + taken, cached_blocks=max(0, cached))


def _shape(entries: list[Scheduled]) -> StepShape:
    decode_seqs = ctx_sum = ctx_max = logits_rows = 0
    chunks: list[PrefillChunk] = []
    for entry in entries:
        logits_rows += entry.samples
        if entry.is_decode:
            context = entry.computed_before + 1
            decode_seqs += 1
            ctx_sum += context
            ctx_max = max(ctx_max, context)
        else:
            chunks.append(PrefillChunk(entry.num_tokens, entry.computed_before))
    return StepShape(decode_seqs, ctx_sum, ctx_max, tuple(chunks), logits_rows)


def _stamp_token(request: Request, now_ns: int, gaps: dict[int, int]) -> None:
    if request.first_token_ns < 0:
        request.first_token_ns = now_ns
    else:
        gap_ns = now_ns - request.last_token_ns
        gaps[gap_ns] = gaps.get(gap_ns, 0) + 1
    request.last_token_ns = now_ns
