"""What a strategy holds in its hands: a query, its samples, and the things it can wait for.

A strategy is a generator: it spawns, scores and cancels samples on its `Query` and yields what it waits for; what it
returns is the answer. It sees what a client sees, results when they are delivered; what it does reaches the engine
with the next input.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ttsim_des.engine.request import CANCELLED, Request
from ttsim_des.scenario.schema import StrategyTable
from ttsim_des.tuples import new_tuple
from ttsim_des.workload.outcomes.draws import NO_ANSWER
from ttsim_des.workload.queries import Verdict


@dataclass(slots=True, eq=False)
class Sample:
    """One request of a query, as its client sees it."""

    request: Request
    index: int
    """Within the query, in order of spawning."""
    pool: str
    read_tokens: Callable[[Sample], int]
    """How many tokens a sample has delivered to its client by now."""
    parent: Sample | None = None
    tell_at: tuple[int, ...] = ()
    lane: int = -1
    """Which of the query's draws says how it ends; -1 where the strategy said so itself."""
    tokens: int = -1
    """How long it gets if nothing stops it, where the strategy said so; -1 where its lane does."""
    verdict: Verdict | None = None
    """What it is worth, if it ends by itself; None where nobody knows."""
    done_ns: int = -1
    """When the client learnt that it had ended; -1 before."""
    cause: Sample | None = None
    think_ns: int = 0
    """Whose end made the strategy ask for it, and how long it waited beside that."""
    replica: int = -1
    enters_ns: int = -1
    """When it reaches its engine's input queue, where the front end takes time; `has_entered` once it has."""
    has_entered: bool = False

    @property
    def is_done(self) -> bool:
        """Whether the client knows that it has ended, by itself or cancelled."""
        return self.done_ns >= 0

    @property
    def is_cancelled(self) -> bool:
        """Whether it was ended by a cancel."""
        return self.request.status is CANCELLED

    @property
    def output_tokens(self) -> int:
        """Tokens delivered so far."""
        return self.read_tokens(self)

    @property
    def answer(self) -> int:
        """The id of its answer; below 0 while it runs, where it was cut off at its cap, and where nobody knows."""
        if self.verdict is None or not self.is_done or self.request.finish_reason != "stop":
            return NO_ANSWER
        return self.verdict.answer

    @property
    def score(self) -> float:
        """What a verifier says of it; the lowest where it has no answer. ValueError without outcomes."""
        if self.verdict is None:
            raise ValueError('scores need outcomes (workload.output.distribution = "outcomes")')
        return self.verdict.score if self.answer != NO_ANSWER else float("-inf")


@dataclass(slots=True, eq=False)
class Timer:
    """Something that is done at a time; it can be joined like a sample."""

    delay_ns: int
    done_ns: int = -1

    @property
    def is_done(self) -> bool:
        """Whether its time has come."""
        return self.done_ns >= 0


Awaited = Sample | Timer


class Join(NamedTuple):
    """Wait until `needed` of the samples are done; the strategy is sent those that are, in order of finishing."""

    samples: tuple[Awaited, ...]
    needed: int


class Delay(NamedTuple):
    """Wait for a time, in nanoseconds; the strategy is sent an empty list."""

    delay_ns: int


class Reach(NamedTuple):
    """Wait until a sample has this many tokens or has ended; the strategy is sent the sample in a list."""

    sample: Sample
    tokens: int


Wait = Join | Delay | Reach
Process = Generator[Wait, list[Sample], Sample | None]
Strategy = Callable[["Query"], Process]


class Spawn(NamedTuple):
    """What a strategy asks for when it spawns; see `Query.spawn`."""

    pool: str
    parent: Sample | None
    append_tokens: int
    tokens: int | None
    max_tokens: int | None
    verdict: Verdict | None
    tell_at: tuple[int, ...]


class World(Protocol):
    """What a query asks of the simulation around it."""

    def make_sample(self, query: Query, asked: Spawn) -> Sample:
        """A sample with its request, not sent yet."""
        ...

    def start_timer(self, query: Query, timer: Timer) -> None:
        """Let a timer run from now on."""
        ...

    def lane(self, query_id: int, lane: int) -> tuple[int, Verdict | None]:
        """A query's draw: the tokens of a whole chain, and what it is worth where that is known."""
        ...

    def uniform(self, query_id: int, name: str, index: int) -> float:
        """A uniform variate that belongs to (query, name, index)."""
        ...


@dataclass(slots=True, eq=False)
class Query:
    """One question. What is spawned and cancelled is sent when the strategy next waits or returns."""

    query_id: int
    strategy: StrategyTable
    max_tokens: int
    """The cap on output tokens that requests are sent with."""
    world: World
    samples: list[Sample] = field(default_factory=list)
    outbox: list[Sample] = field(default_factory=list)
    cancels: list[Sample] = field(default_factory=list)
    num_lanes: int = 0

    def spawn(
        self,
        *,
        pool: str = "generator",
        parent: Sample | None = None,
        append_tokens: int = 0,
        tokens: int | None = None,
        max_tokens: int | None = None,
        verdict: Verdict | None = None,
        tell_at: Iterable[int] = (),
    ) -> Sample:
        """Ask for one more sample of the query's prompt, or of a finished `parent`'s whole text.

        `append_tokens`: new tokens behind that text, such as feedback or a tool's output. How long the sample gets, and
        what it is worth, is the query's next draw, unless `tokens` says how long (then `verdict` may say what it is
        worth). `max_tokens`: another cap than the scenario's. `tell_at`: token counts at which the client is told
        of the sample's progress (for `reach`).
        """
        told = tuple(sorted(set(tell_at))) if tell_at else ()
        asked = new_tuple(Spawn, (pool, parent, append_tokens, tokens, max_tokens, verdict, told))
        sample = self.world.make_sample(self, asked)
        self.samples.append(sample)
        self.outbox.append(sample)
        return sample

    def score(self, sample: Sample, pool: str, append_tokens: int = 0) -> Sample:
        """Ask a verifier's pool to read a finished sample's whole text and its own instructions: a prefill, no output.

        The score itself is `sample.score` once this request is done.
        """
        return self.spawn(pool=pool, parent=sample, append_tokens=append_tokens, tokens=0, max_tokens=0)

    def cancel(self, samples: Iterable[Sample]) -> None:
        """Stop those that are not done yet; what they have produced is wasted."""
        self.cancels += [sample for sample in samples if not sample.is_done]

    def timer(self, delay_ns: int) -> Timer:
        """A timer that runs from now on, to be joined with samples."""
        timer = Timer(delay_ns)
        self.world.start_timer(self, timer)
        return timer

    def join(self, samples: Iterable[Awaited], count: int | None = None) -> Join:
        """Wait for `count` of the samples and timers (all by default)."""
        waited = tuple(dict.fromkeys(samples))
        needed = len(waited) if count is None else count
        if not 0 < needed <= len(waited):
            raise ValueError(f"cannot wait for {needed} of {len(waited)} samples")
        return Join(waited, needed)

    def reach(self, sample: Sample, tokens: int) -> Reach:
        """Wait until `sample` has `tokens` tokens, which must be among its `tell_at`, or has ended."""
        if tokens not in sample.tell_at:
            raise ValueError(f"sample {sample.index} does not tell at {tokens} tokens, only at {sample.tell_at}")
        return Reach(sample, tokens)

    def draw(self) -> tuple[int, Verdict | None]:
        """The query's next draw, for a strategy that divides a chain itself: its tokens, and what it is worth."""
        lane = self.num_lanes
        self.num_lanes = lane + 1
        return self.world.lane(self.query_id, lane)

    def uniform(self, name: str, index: int) -> float:
        """A uniform variate of its own for (query, name, index)."""
        return self.world.uniform(self.query_id, name, index)
