"""One engine in a hand-made world: requests in, the schedule out, step by step.

Every step takes `step_ns` (1 ms), blocks hold 4 tokens, nothing is cached and scheduling is synchronous unless a world
says otherwise. Each world is run twice, step by step and leaping, and must give the same requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.replica import Replica, Stepping
from ttsim_des.engine.request import Outcome, PromptSegment, Request
from ttsim_des.engine.scheduler import Plan
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.host import HostOverhead
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.timeline import Phase, Timeline

MS = 1_000_000

Entries = dict[str, tuple[int, int]]
"""What a step computes: name of the request -> (tokens, computed before), in schedule order."""

_FACTS = [
    *("status", "queued_ns", "scheduled_ns", "first_token_ns", "finish_ns", "finish_reason"),
    *("num_output_tokens", "cached_tokens", "computed_tokens", "recomputed_tokens", "overshoot_tokens", "preemptions"),
]


class World:
    """Requests are `ask`ed for, then `run` plays them."""

    def __init__(
        self, stepping: Stepping, *, usable_blocks: int = 1_000, step_ns: int = MS, host: HostOverhead, **config: Any
    ) -> None:
        settings = {"block_size": 4, "enable_prefix_caching": False, "async_scheduling": False} | config
        self.timeline = Timeline()
        self.stepping = stepping
        self.recorder = StepRecorder("generator", 0)
        self.engine = Replica(
            0,
            EngineConfig(num_gpu_blocks=usable_blocks + 1, **settings),
            AffineStepModel(constant_ns=step_ns),
            host,
            self.timeline,
            self,
            self.recorder,
            stepping,
            self._see if stepping == "step" else None,
        )
        self.requests: dict[str, Request] = {}
        self.steps: list[Entries] = []
        self.victims: list[list[str]] = []
        self.starts_ns: list[int] = []
        self.ends_ns: list[int] = []
        self.tokens_ns: dict[str, list[int]] = defaultdict(list)
        self.finished: list[str] = []

    def ask(
        self,
        name: str,
        prompt_tokens: int,
        output_tokens: int,
        *,
        at_ns: int = 0,
        max_tokens: int | None = None,
        priority: int = 0,
        owner: int | None = None,
        cancel_ns: int | None = None,
    ) -> None:
        """A request that would stop by itself after `output_tokens`, the cap when `max_tokens` is not given."""
        number = len(self.requests)
        prompt: tuple[PromptSegment, ...] = ((number + 1_000 if owner is None else owner, prompt_tokens),)
        cap = output_tokens if max_tokens is None else max_tokens
        request = self.requests[name] = Request(number, prompt_tokens, cap, prompt, at_ns, priority, name)
        # Told of every token when stepping; leaping worlds are not, so that they leap.
        outcome = Outcome(output_tokens, tuple(range(1, cap + 1)) if self.stepping == "step" else ())
        self.timeline.at(at_ns, Phase.ARRIVAL, number, lambda _: self.engine.submit(request, outcome))
        if cancel_ns is not None:
            self.timeline.at(cancel_ns, Phase.ARRIVAL, number, lambda _: self.engine.cancel(request))

    def run(self) -> None:
        self.timeline.run()
        kv = self.engine.scheduler.kv
        assert not self.engine.scheduler.running
        assert not len(self.engine.scheduler.waiting)
        assert kv.num_free_blocks == kv.num_usable_blocks

    def facts(self) -> dict[str, dict[str, Any]]:
        """What is known of each request at the end."""
        return {name: {fact: getattr(request, fact) for fact in _FACTS} for name, request in self.requests.items()}

    # ---- what the engine tells ----

    def on_finish(self, request: Request, delivered_ns: int, *, is_alone: bool) -> None:
        self.finished.append(request.name)

    def on_milestone(self, request: Request, delivered_ns: int) -> None:
        self.tokens_ns[request.name].append(delivered_ns)

    def _see(self, plan: Plan, start_ns: int, end_ns: int) -> None:
        self.steps.append({entry.request.name: entry[1:3] for entry in plan.entries})
        self.victims.append([request.name for request in plan.preempted])
        self.starts_ns.append(start_ns)
        self.ends_ns.append(end_ns)


def play(build: Callable[[World], None], *, host: HostOverhead | None = None, **settings: Any) -> World:
    """Run a world both ways, compare, and return the one that went step by step."""
    worlds = [World(stepping, host=host or HostOverhead(), **settings) for stepping in ("step", "leap")]
    for world in worlds:
        build(world)
        world.run()
    stepped, leapt = worlds
    assert stepped.facts() == leapt.facts()
    assert stepped.finished == leapt.finished
    # An input cuts a leap: the event at its end, still on the timeline, then passes idly.
    assert leapt.timeline.events <= stepped.timeline.events + 2 * len(leapt.requests)
    return stepped
