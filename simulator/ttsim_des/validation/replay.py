"""Replays a recording's requests through one simulated engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.replica import Replica, Stepping
from ttsim_des.engine.request import Outcome, Request
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.shape import StepModel
from ttsim_des.recordings.recording import RecordedRequest
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.timeline import Phase, Timeline
from ttsim_des.units import s_to_ns


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the simulation made of a recording: its requests, in the recording's order, and the steps of the engine."""

    requests: Sequence[Request]
    recorder: StepRecorder
    simpy_events: int


class _Replay:
    """The listener: requests whose parent must end first are sent when it has."""

    def __init__(self, recorded: Sequence[RecordedRequest]) -> None:
        self.recorded = recorded
        self.requests: dict[str, Request] = {}
        self.names: list[str] = []
        self.children: dict[str, list[RecordedRequest]] = defaultdict(list)
        self.timeline = Timeline()
        self.replica: Replica | None = None

    def send(self, index: int, row: RecordedRequest, arrival_ns: int) -> None:
        request = self.requests[row.name]
        request.arrival_ns = arrival_ns
        outcome = Outcome(row.output_tokens, (), row.drafting)
        assert self.replica is not None
        submit = self.replica.submit
        self.timeline.at(arrival_ns, Phase.ARRIVAL, index, lambda _: submit(request, outcome))

    def on_finish(self, request: Request, delivered_ns: int, *, is_alone: bool) -> None:
        for child in self.children[self.names[request.request_id]]:
            self.send(self.requests[child.name].request_id, child, delivered_ns)

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        raise AssertionError("nobody asked for milestones")


def replay(
    recorded: Sequence[RecordedRequest],
    config: EngineConfig,
    host: HostOverhead,
    model: StepModel,
    stepping: Stepping = "leap",
) -> Replayed:
    """Simulate the requests of a recording, each from its true arrival on, with its recorded number of tokens."""
    run, recorder = _Replay(recorded), StepRecorder("generator", 0)
    run.replica = Replica(0, config, model, host, run.timeline, run, recorder, stepping)
    for index, row in enumerate(recorded):
        run.requests[row.name] = Request(
            index, row.prompt_tokens, row.output_tokens, row.prompt, -1, row.priority, row.engine_id
        )
        run.names.append(row.name)
        if row.parent is not None:
            run.children[row.parent].append(row)
    for index, row in enumerate(recorded):
        if row.parent is None:
            run.send(index, row, s_to_ns(row.arrival_s))
    run.timeline.run()
    return Replayed([run.requests[row.name] for row in recorded], recorder, run.timeline.events)
