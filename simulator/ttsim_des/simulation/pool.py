"""A pool: replicas of one deployment behind a router, each with its API server in front."""

from __future__ import annotations

from collections.abc import Callable

from ttsim_des.engine.replica import Replica
from ttsim_des.engine.request import Outcome
from ttsim_des.engine.speculation import Drafting
from ttsim_des.router import Router
from ttsim_des.timeline import ARRIVAL, Event, Timeline
from ttsim_des.workload.handle import Sample

Luck = Callable[[int, int, int], Drafting]
"""(query, sample, output tokens) -> what drafts for that sample would meet."""


class Pool:
    """Takes samples in at the router and hands them to an engine.

    The API server of a replica is one process: requests go through it one after the other, `ingest_ns` each. `luck`
    is asked where the engines speculate.
    """

    def __init__(
        self,
        name: str,
        router: Router,
        replicas: list[Replica],
        ingest_ns: int,
        timeline: Timeline,
        luck: Luck | None = None,
    ) -> None:
        self.name, self.replicas, self._luck = name, replicas, luck
        self._router, self._ingest_ns, self._timeline = router, ingest_ns, timeline
        self._server_free_ns = [0] * len(replicas)
        self._entering = [0] * len(replicas)

    def send(self, query_id: int, sample: Sample, outcome: Outcome, now_ns: int) -> None:
        """A sample leaves the client now, at `now_ns`: choose its replica and let it enter there."""
        if self._luck is not None and sample.request.max_tokens:
            outcome.drafting = self._luck(query_id, sample.index, min(outcome.output_tokens, sample.request.max_tokens))
        index = 0
        if len(self.replicas) > 1:
            loads = [replica.load + entering for replica, entering in zip(self.replicas, self._entering, strict=True)]
            index = self._router.choose(query_id, loads)
        sample.replica = index
        if not self._ingest_ns:
            sample.has_entered = True
            self.replicas[index].submit(sample.request, outcome)
            return
        enters_ns = sample.enters_ns = max(now_ns, self._server_free_ns[index]) + self._ingest_ns
        self._server_free_ns[index] = enters_ns
        self._entering[index] += 1
        self._timeline.at(enters_ns, ARRIVAL, sample.request.request_id, self._enter(sample, outcome))

    def cancel(self, sample: Sample) -> None:
        """A cancel reaches the sample's engine now, behind the sample itself if that is still entering."""
        replica, request = self.replicas[sample.replica], sample.request
        if sample.has_entered:
            replica.cancel(request)
        else:
            self._timeline.at(sample.enters_ns, ARRIVAL, request.request_id, lambda _: replica.cancel(request))

    def _enter(self, sample: Sample, outcome: Outcome) -> Callable[[Event], None]:
        def enter(_event: Event) -> None:
            self._entering[sample.replica] -= 1
            sample.has_entered = True
            self.replicas[sample.replica].submit(sample.request, outcome)

        return enter
