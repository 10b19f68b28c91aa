"""One simulation: a workload against a deployment, from the first arrival until everything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ttsim_des.deployment import Deployment
from ttsim_des.engine.replica import Replica, Stepping
from ttsim_des.errors import NotValidError
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.records.tables import GENERATOR, Tables
from ttsim_des.rng import Streams
from ttsim_des.router import make_router
from ttsim_des.scenario.schema import Scenario
from ttsim_des.simulation.client import Client, QueryRun
from ttsim_des.simulation.collect import Collector
from ttsim_des.simulation.pool import Luck, Pool
from ttsim_des.timeline import REACTION, Event, Timeline
from ttsim_des.units import s_to_ns
from ttsim_des.workload.queries import QuerySource
from ttsim_des.workload.strategies.resolve import resolve_strategy

Progress = Callable[[int, int], None]
HERE = Path()


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulation leaves: its record tables and what it cost in events."""

    tables: Tables
    simpy_events: int


def simulate(
    scenario: Scenario,
    deployment: Deployment,
    source: QuerySource,
    arrivals_ns: Iterator[int] | None,
    progress: Progress | None = None,
    base_dir: Path = HERE,
    replication: int = 0,
) -> Simulated:
    """Run all queries of the scenario to their end.

    `arrivals_ns`: arrival times of an open process; None in a closed loop, where a query follows the answer of
    another. `progress(done, offered)` is called at every answer. Files that the strategy names are relative to
    `base_dir`. `replication`: whose streams the acceptance of drafts is drawn from. Raises NotValidError when an
    invariant breaks.
    """
    timeline = Timeline()
    queries = scenario.experiment.queries
    turnaround_ns = s_to_ns(scenario.client.turnaround_s)
    arrivals = _Arrivals(timeline, queries, arrivals_ns, turnaround_ns)
    num_done = 0

    def on_answer(run: QueryRun) -> None:
        nonlocal num_done
        num_done += 1
        collector.on_answer(run)
        arrivals.on_answer()
        if progress is not None:
            progress(num_done, queries)

    strategy, settings = resolve_strategy(scenario.workload.strategy, base_dir)
    workload = scenario.workload.model_copy(update={"strategy": settings})
    client = Client(workload, strategy, source, timeline, turnaround_ns, on_answer)
    recorders: list[StepRecorder] = []
    streams = Streams(scenario.seed, replication)
    for name, deployed in {GENERATOR: deployment, **deployment.pools}.items():
        own = [StepRecorder(name, index) for index in range(deployed.replicas)]
        recorders += own
        luck = None if deployed.acceptance is None else partial(deployed.acceptance.drafting, streams)
        client.pools[name] = _build_pool(name, deployed, client, timeline, own, scenario.engine.stepping, luck)
    pools = list(client.pools.values())
    collector = Collector(list(client.pools), recorders)
    arrivals.begin(client, scenario.workload.arrivals.concurrency or 0)
    timeline.run()
    for pool in pools:
        _check_empty(pool)
    end_ns = max(collector.end_ns, *(replica.idle_since_ns for pool in pools for replica in pool.replicas))
    return Simulated(collector.tables(client.open_runs, end_ns), timeline.events)


def _build_pool(
    name: str,
    deployment: Deployment,
    client: Client,
    timeline: Timeline,
    recorders: Sequence[StepRecorder],
    stepping: Stepping,
    luck: Luck | None,
) -> Pool:
    replicas = [
        Replica(
            index,
            deployment.engine_config,
            deployment.step_model,
            deployment.host,
            timeline,
            client,
            recorder,
            stepping,
        )
        for index, recorder in enumerate(recorders)
    ]
    router = make_router(deployment.router, len(replicas))
    return Pool(name, router, replicas, deployment.host.request_ns, timeline, luck)


class _Arrivals:
    """Starts queries: at given times, or each after the answer of another."""

    def __init__(self, timeline: Timeline, queries: int, times_ns: Iterator[int] | None, turnaround_ns: int) -> None:
        self._timeline, self._queries = timeline, queries
        self._times_ns, self._turnaround_ns = times_ns, turnaround_ns
        self._started = 0

    def begin(self, client: Client, concurrency: int) -> None:
        """Schedule the first arrival, or the first `concurrency` ones of a closed loop."""
        self._client = client
        if self._times_ns is not None:
            self._start_next(next(self._times_ns, None))
            return
        for _ in range(min(concurrency, self._queries)):
            self._start_next(0)

    def on_answer(self) -> None:
        """A query has been answered: in a closed loop the next one follows."""
        if self._times_ns is None:
            self._start_next(self._timeline.now_ns + self._turnaround_ns)

    def _start_next(self, time_ns: int | None) -> None:
        if time_ns is None or self._started == self._queries:
            return
        query_id = self._started
        self._started += 1
        self._timeline.at(time_ns, REACTION, query_id, partial(self._start, query_id))

    def _start(self, query_id: int, _event: Event) -> None:
        self._client.start_query(query_id)
        if self._times_ns is not None:
            self._start_next(next(self._times_ns, None))


def _check_empty(pool: Pool) -> None:
    """At the end nobody runs, nobody waits and no block is held."""
    for replica in pool.replicas:
        scheduler = replica.scheduler
        held = scheduler.kv.num_usable_blocks - scheduler.kv.num_free_blocks
        if scheduler.running or len(scheduler.waiting) or held:
            left = f"{len(scheduler.running)} running, {len(scheduler.waiting)} waiting, {held} blocks held"
            raise NotValidError(f"replica {replica.index} is not empty at the end: {left}")
