"""The client side: runs the strategies of all queries against the pools.

A strategy reacts at the moment a result is delivered; the requests and cancels that it causes leave the client
`turnaround_ns` later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ttsim_des.engine.request import Outcome, PromptSegment, Request
from ttsim_des.scenario.schema import Workload
from ttsim_des.simulation.pool import Pool
from ttsim_des.timeline import ARRIVAL, REACTION, STEP_END, Event, Timeline
from ttsim_des.workload.handle import Awaited, Delay, Join, Process, Query, Reach, Sample, Spawn, Strategy, Timer, Wait
from ttsim_des.workload.queries import QuerySource, Verdict

APPENDED_OWNERS = 1 << 40
"""Owners of text that strategies append: beyond those of prompts, above outputs' (which are negative)."""


@dataclass(slots=True, eq=False)
class QueryRun:
    """A query in flight: its strategy's process and what that waits for."""

    query: Query
    arrival_ns: int
    prompt: tuple[PromptSegment, ...]
    prompt_tokens: int
    process: Process
    waits_for: Wait | None = None
    waited: frozenset[Awaited] = frozenset()
    missing: int = 0
    """Of a join: the samples waited for, and how many of them must still end."""
    finish_ns: int = -1
    answer: Sample | None = None
    straggler: Sample | None = None
    critical_tokens: int = 0
    """Output tokens of the samples that completed a join: those that the answer had to wait for one after the other."""
    done: list[Awaited] = field(default_factory=list)
    """Samples and timers whose end the client knows of, in order."""


class Client:
    """Starts queries, drives their strategies, sends their requests.

    `on_answer(query_run)` is called when a query is answered.
    """

    def __init__(
        self,
        workload: Workload,
        strategy: Strategy,
        source: QuerySource,
        timeline: Timeline,
        turnaround_ns: int,
        on_answer: Callable[[QueryRun], None],
    ) -> None:
        self.pools: dict[str, Pool] = {}
        self._workload, self._strategy, self._source = workload, strategy, source
        self._timeline, self._turnaround_ns, self._on_answer = timeline, turnaround_ns, on_answer
        self._open: dict[int, QueryRun] = {}
        self._samples: dict[int, tuple[QueryRun, Sample]] = {}
        self._num_requests = 0

    def start_query(self, query_id: int) -> None:
        """A query arrives now (call it in the REACTION phase)."""
        _, prompt_tokens, prompt = self._source.query(query_id)
        query = Query(query_id, self._workload.strategy, self._workload.max_tokens, self)
        process = self._strategy(query)
        run = self._open[query_id] = QueryRun(query, self._timeline.now_ns, prompt, prompt_tokens, process)
        self._resume(run, None, 0)

    @property
    def open_runs(self) -> list[QueryRun]:
        """Queries without an answer."""
        return list(self._open.values())

    # ---- what engines report ----

    def on_finish(self, request: Request, delivered_ns: int, *, is_alone: bool) -> None:
        """A request has ended by itself; its client learns of it at `delivered_ns`, of nothing else if `is_alone`."""
        is_quiet = self._timeline.is_quiet_until(delivered_ns)
        if is_quiet or delivered_ns == self._timeline.now_ns:
            self._end_sample(request, delivered_ns, at_once=is_quiet and is_alone)
        else:
            self._deliver(request, delivered_ns, partial(self._learn_of_end, request, delivered_ns))

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        """A request has reached one of its `tell_at` counts; its client learns of it at `delivered_ns`."""
        num_output = request.num_output_tokens
        if self._timeline.is_quiet_until(delivered_ns) or delivered_ns == self._timeline.now_ns:
            self._pass_milestone(request, num_output, delivered_ns)
        else:
            self._deliver(request, delivered_ns, partial(self._pass_milestone, request, num_output, delivered_ns))

    def _deliver(self, request: Request, delivered_ns: int, take: Callable[[Event], None]) -> None:
        if request.request_id in self._samples:
            replica = self._samples[request.request_id][1].replica
            self._timeline.at(delivered_ns, STEP_END, replica, take)

    def _pass_milestone(self, request: Request, num_output: int, now_ns: int, _event: Event | None = None) -> None:
        if request.request_id not in self._samples:
            return  # given up
        run, sample = self._samples[request.request_id]
        wait = run.waits_for
        if isinstance(wait, Reach) and wait.sample is sample and num_output >= wait.tokens:
            self._wake(run, [sample], now_ns)

    def _learn_of_end(self, request: Request, now_ns: int, _event: Event) -> None:
        self._end_sample(request, now_ns, at_once=self._timeline.is_quiet_until(now_ns))

    def _end_sample(self, request: Request, now_ns: int, *, at_once: bool = False) -> None:
        """The client learns at `now_ns` that a request has ended; `at_once`: nothing else can happen by then."""
        known = self._samples.pop(request.request_id, None)
        if known is None:
            return  # given up: the result crossed the cancel
        run, sample = known
        sample.done_ns = now_ns
        run.done.append(sample)
        if sample in run.waited:
            run.missing -= 1
            if run.missing == 0:
                run.straggler = sample
                run.critical_tokens += request.num_output_tokens
                self._wake(run, self._done_of(run), now_ns, at_once=at_once)
        elif run.waits_for is not None:
            wait = run.waits_for
            if isinstance(wait, Reach) and wait.sample is sample:
                self._wake(run, [sample], now_ns)

    @staticmethod
    def _done_of(run: QueryRun) -> list[Sample]:
        return [sample for sample in run.done if sample in run.waited and isinstance(sample, Sample)]

    # ---- driving a strategy ----

    def _wake(self, run: QueryRun, result: list[Sample], time_ns: int, *, at_once: bool = False) -> None:
        """Let a strategy go on at `time_ns`; `at_once`: nothing else can happen by then."""
        run.waits_for, run.waited = None, frozenset()
        if at_once:
            self._timeline.advance(time_ns)
            self._resume(run, result, self._turnaround_ns)
            return
        key = run.query.query_id
        self._timeline.at(time_ns, REACTION, key, partial(self._resume, run, result, self._turnaround_ns))

    def _resume(
        self, run: QueryRun, result: list[Sample] | None, turnaround_ns: int, _event: Event | None = None
    ) -> None:
        """Let the strategy go on until it waits for something that has not happened yet, or answers."""
        now_ns = self._timeline.now_ns
        try:
            wait = next(run.process) if result is None else run.process.send(result)
        except StopIteration as answer:
            run.answer, run.finish_ns = answer.value, now_ns
            self._flush(run.query, now_ns + turnaround_ns)
            del self._open[run.query.query_id]
            self._on_answer(run)
            return
        self._flush(run.query, now_ns + turnaround_ns)
        run.waits_for = wait
        if isinstance(wait, Join):
            waited, missing = wait
            for sample in waited:
                if sample.done_ns >= 0:
                    missing -= 1
            run.waited, run.missing = frozenset(waited), missing
            if missing <= 0:
                self._wake(run, self._done_of(run), now_ns)
        elif isinstance(wait, Delay):
            self._wake(run, [], now_ns + wait.delay_ns)
        elif wait.sample.is_done or wait.sample.output_tokens >= wait.tokens:
            self._wake(run, [wait.sample], now_ns)

    def _flush(self, query: Query, leaves_ns: int) -> None:
        """Send what the strategy spawned and cancelled."""
        timeline = self._timeline
        if query.outbox:
            samples, query.outbox = query.outbox, []
            if leaves_ns == timeline.now_ns and not query.cancels and timeline.is_quiet_until(leaves_ns):
                self._send(query.query_id, samples, leaves_ns)
                return
            # Their ids follow each other, so at one instant no other request can come between them.
            key = samples[0].request.request_id
            timeline.at(leaves_ns, ARRIVAL, key, partial(self._send, query.query_id, samples, leaves_ns))
        for sample in query.cancels:
            timeline.at(leaves_ns, ARRIVAL, sample.request.request_id, self._cancelling(sample))
        query.cancels = []

    def _send(self, query_id: int, samples: list[Sample], now_ns: int, _event: Event | None = None) -> None:
        pools, output_tokens = self.pools, self._source.output_tokens
        for sample in samples:
            sample.request.arrival_ns = now_ns
            tokens = sample.tokens
            if tokens < 0:
                tokens = output_tokens(query_id, sample.lane)
            pools[sample.pool].send(query_id, sample, Outcome(tokens, sample.tell_at), now_ns)

    def _cancelling(self, sample: Sample) -> Callable[[Event], None]:
        def cancel(_event: Event) -> None:
            self.pools[sample.pool].cancel(sample)
            self._end_sample(sample.request, self._timeline.now_ns)

        return cancel

    def _read_tokens(self, sample: Sample) -> int:
        return self.pools[sample.pool].replicas[sample.replica].delivered_tokens(sample.request)

    # ---- what queries ask for ----

    def make_sample(self, query: Query, asked: Spawn) -> Sample:
        """See `World`."""
        pool, parent, append_tokens, tokens, max_tokens, verdict, tell_at = asked
        run, index, request_id = self._open[query.query_id], len(query.samples), self._num_requests
        prompt, prompt_tokens = run.prompt, run.prompt_tokens
        if parent is not None:
            before = parent.request
            prompt_tokens = before.num_tokens
            prompt = before.prompt
            if before.num_output_tokens:
                prompt = (*prompt, (before.output_owner, prompt_tokens))
        if append_tokens:
            prompt_tokens += append_tokens
            prompt = (*prompt, (APPENDED_OWNERS + request_id, prompt_tokens))
        workload, lane = self._workload, -1
        if tokens is None:
            lane, tokens = query.num_lanes, -1
            query.num_lanes = lane + 1
            if self._source.has_outcomes:
                verdict = self._source.verdict(query.query_id, lane)
        request = Request(
            request_id,
            prompt_tokens,
            workload.max_tokens if max_tokens is None else max_tokens,
            prompt,
            -1,
            workload.priority,
            f"{index}_{query.query_id}",
        )
        self._num_requests = request_id + 1
        sample = Sample(request, index, pool, self._read_tokens, parent, tell_at, lane, tokens, verdict)
        if index:  # the first ones are asked for when the query arrives
            cause = sample.cause = run.straggler
            sample.think_ns = self._timeline.now_ns - (run.arrival_ns if cause is None else cause.done_ns)
        self._samples[request_id] = (run, sample)
        return sample

    def start_timer(self, query: Query, timer: Timer) -> None:
        """See `World`."""
        run, key = self._open[query.query_id], query.query_id
        time_ns = self._timeline.now_ns + timer.delay_ns
        self._timeline.at(time_ns, REACTION, key, partial(self._end_timer, run, timer, time_ns))

    def lane(self, query_id: int, lane: int) -> tuple[int, Verdict | None]:
        """See `World`."""
        verdict = self._source.verdict(query_id, lane) if self._source.has_outcomes else None
        return self._source.output_tokens(query_id, lane), verdict

    def uniform(self, query_id: int, name: str, index: int) -> float:
        """See `World`."""
        return self._source.uniform(query_id, name, index)

    def _end_timer(self, run: QueryRun, timer: Timer, now_ns: int, _event: Event) -> None:
        timer.done_ns = now_ns
        run.done.append(timer)
        if timer in run.waited:
            run.missing -= 1
            if run.missing == 0:
                self._wake(run, self._done_of(run), now_ns)
