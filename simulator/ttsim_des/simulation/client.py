"""The client side: runs the strategies of all queries against the pools.

A strategy reacts at the moment a result is delivered; the requests and cancels that it causes leave the client
`turnaround_ns` later.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from ttsim_des.engine.request import Outcome, Request
from ttsim_des.scenario.schema import Workload
from ttsim_des.simulation.pool import Pool
from ttsim_des.timeline import Event, Phase, Timeline
from ttsim_des.workload.handle import Delay, Join, Query, Reach, Sample, Strategy, Wait
from ttsim_des.workload.queries import QuerySource


@dataclass(slots=True, eq=False)
class QueryRun:
    """A query in flight: its strategy's process and what that waits for."""

    query: Query
    arrival_ns: int
    process: Generator[Wait, list[Sample], Sample | None]
    waits_for: Wait | None = None
    waited: frozenset[Sample] = frozenset()
    missing: int = 0
    """Of a join: the samples waited for, and how many of them must still end."""
    finish_ns: int = -1
    answer: Sample | None = None
    straggler: Sample | None = None
    done: list[Sample] = field(default_factory=list)
    """Samples whose end the client knows of, in order."""


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
        self.pools: Mapping[str, Pool] = {}
        self.runs: list[QueryRun] = []
        self._workload, self._strategy, self._source = workload, strategy, source
        self._timeline, self._turnaround_ns, self._on_answer = timeline, turnaround_ns, on_answer
        self._open: dict[int, QueryRun] = {}
        self._samples: dict[int, tuple[QueryRun, Sample]] = {}
        self._num_requests = 0

    def start_query(self, query_id: int) -> None:
        """A query arrives now (call it in the REACTION phase)."""
        query = Query(query_id, self._workload.strategy, self._make_sample)
        run = self._open[query_id] = QueryRun(query, self._timeline.now_ns, self._strategy(query))
        self.runs.append(run)
        self._resume(run, None, 0)

    # ---- what engines report ----

    def on_finish(self, request: Request, delivered_ns: int) -> None:
        """A request has ended by itself; its client learns of it at `delivered_ns`."""
        self._deliver(request, delivered_ns, lambda: self._end_sample(request, delivered_ns))

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        """A request has reached one of its `tell_at` counts; its client learns of it at `delivered_ns`."""
        num_output = request.num_output_tokens
        self._deliver(request, delivered_ns, lambda: self._pass_milestone(request, num_output, delivered_ns))

    def _deliver(self, request: Request, delivered_ns: int, take: Callable[[], None]) -> None:
        """Let the client `take` a result when it is delivered: at once where nothing can happen until then."""
        timeline = self._timeline
        if delivered_ns == timeline.now_ns or timeline.is_quiet_until(delivered_ns):
            take()
        elif request.request_id in self._samples:
            replica = self._samples[request.request_id][1].replica
            timeline.at(delivered_ns, Phase.STEP_END, replica, lambda _: take())

    def _pass_milestone(self, request: Request, num_output: int, now_ns: int) -> None:
        if request.request_id not in self._samples:
            return  # given up
        run, sample = self._samples[request.request_id]
        wait = run.waits_for
        if isinstance(wait, Reach) and wait.sample is sample and num_output >= wait.tokens:
            self._wake(run, [sample], now_ns)

    def _end_sample(self, request: Request, now_ns: int) -> None:
        if request.request_id not in self._samples:
            return  # given up: the result crossed the cancel
        run, sample = self._samples.pop(request.request_id)
        sample.done_ns = now_ns
        run.done.append(sample)
        wait = run.waits_for
        if isinstance(wait, Reach) and wait.sample is sample:
            self._wake(run, [sample], now_ns)
        elif isinstance(wait, Join) and sample in run.waited:
            run.missing -= 1
            if run.missing == 0:
                run.straggler = sample
                self._wake(run, self._done_of(run), now_ns)

    @staticmethod
    def _done_of(run: QueryRun) -> list[Sample]:
        return [sample for sample in run.done if sample in run.waited]

    # ---- driving a strategy ----

    def _wake(self, run: QueryRun, result: list[Sample], time_ns: int) -> None:
        run.waits_for = None
        key = run.query.query_id
        self._timeline.at(time_ns, Phase.REACTION, key, lambda _: self._resume(run, result, self._turnaround_ns))

    def _resume(self, run: QueryRun, result: list[Sample] | None, turnaround_ns: int) -> None:
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
        if isinstance(wait, Delay):
            self._wake(run, [], now_ns + wait.delay_ns)
        elif isinstance(wait, Reach):
            if wait.sample.is_done or wait.sample.output_tokens >= wait.tokens:
                self._wake(run, [wait.sample], now_ns)
        else:
            run.waited = frozenset(wait.samples)
            run.missing = wait.needed - sum(sample.is_done for sample in wait.samples)
            if run.missing <= 0:
                self._wake(run, self._done_of(run), now_ns)

    def _flush(self, query: Query, leaves_ns: int) -> None:
        """Send what the strategy spawned and cancelled."""
        if query.outbox:
            samples, query.outbox = query.outbox, []
            # Their ids follow each other, so at one instant no other request can come between them.
            key = samples[0].request.request_id
            self._timeline.at(leaves_ns, Phase.ARRIVAL, key, lambda _: self._send(query.query_id, samples, leaves_ns))
        for sample in query.cancels:
            self._timeline.at(leaves_ns, Phase.ARRIVAL, sample.request.request_id, self._cancelling(sample))
        query.cancels = []

    def _send(self, query_id: int, samples: list[Sample], now_ns: int) -> None:
        for sample in samples:
            sample.request.arrival_ns = now_ns
            outcome = Outcome(self._source.output_tokens(query_id, sample.index), list(sample.tell_at))
            self.pools[sample.pool].send(query_id, sample, outcome)

    def _cancelling(self, sample: Sample) -> Callable[[Event], None]:
        def cancel(_event: Event) -> None:
            self.pools[sample.pool].cancel(sample)
            self._end_sample(sample.request, self._timeline.now_ns)

        return cancel

    def _read_tokens(self, sample: Sample) -> int:
        return self.pools[sample.pool].replicas[sample.replica].delivered_tokens(sample.request)

    def _make_sample(self, query: Query, pool: str, parent: Sample | None, tell_at: tuple[int, ...]) -> Sample:
        source = self._source.query(query.query_id)
        prompt, prompt_tokens = source.prompt, source.prompt_tokens
        if parent is not None:
            before = parent.request
            prompt_tokens = before.num_tokens
            prompt = (*before.prompt, (before.output_owner, prompt_tokens))
        request = Request(
            request_id=self._num_requests,
            prompt_tokens=prompt_tokens,
            max_tokens=self._workload.max_tokens,
            prompt=prompt,
            arrival_ns=-1,
            priority=self._workload.priority,
            name=f"{len(query.samples)}_{query.query_id}",
        )
        self._num_requests += 1
        sample = Sample(request, len(query.samples), pool, self._read_tokens, parent, tell_at)
        self._samples[request.request_id] = (self._open[query.query_id], sample)
        return sample
