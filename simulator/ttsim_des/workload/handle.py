"""What a strategy holds in its hands: a query, its samples, and the things it can wait for.

A strategy is a generator: it spawns and cancels samples on its `Query` and yields what it waits for; what it returns is
the answer. It sees what a client sees, results when they are delivered; what it does reaches the engine with the
next input.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ttsim_des.engine.request import Request, Status
from ttsim_des.scenario.schema import StrategyTable


@dataclass(slots=True, eq=False)
class Sample:
    """One request of a query, as its client sees it."""

    request: Request
    index: int
    """Within the query, in order of spawning: the sample's draws belong to (query, index)."""
    pool: str
    read_tokens: Callable[[Sample], int]
    """How many tokens a sample has delivered to its client by now."""
    parent: Sample | None = None
    tell_at: tuple[int, ...] = ()
    done_ns: int = -1
    """When the client learnt that it had ended; -1 before."""
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
        return self.request.status is Status.CANCELLED

    @property
    def output_tokens(self) -> int:
        """Tokens delivered so far."""
        return self.read_tokens(self)


class Join(NamedTuple):
    """Wait until `needed` of the samples are done; the strategy is sent those that are, in order of finishing."""

    samples: tuple[Sample, ...]
    needed: int


class Delay(NamedTuple):
    """Wait for a time, in nanoseconds; the strategy is sent an empty list."""

    delay_ns: int


class Reach(NamedTuple):
    """Wait until a sample has this many tokens or has ended; the strategy is sent the sample in a list."""

    sample: Sample
    tokens: int


Wait = Join | Delay | Reach
Strategy = Callable[["Query"], Generator[Wait, list[Sample], Sample | None]]


@dataclass(slots=True, eq=False)
class Query:
    """One question. Spawned and cancelled samples are sent when the strategy next waits or returns."""

    query_id: int
    strategy: StrategyTable
    make_sample: Callable[[Query, str, Sample | None, tuple[int, ...]], Sample]
    samples: list[Sample] = field(default_factory=list)
    outbox: list[Sample] = field(default_factory=list)
    cancels: list[Sample] = field(default_factory=list)

    def spawn(self, *, pool: str = "generator", parent: Sample | None = None, tell_at: Iterable[int] = ()) -> Sample:
        """Ask for one more sample of the query's prompt, or of a finished `parent`'s whole text.

        `tell_at`: token counts at which the client is told of the sample's progress (for `reach`).
        """
        sample = self.make_sample(self, pool, parent, tuple(sorted(set(tell_at))))
        self.samples.append(sample)
        self.outbox.append(sample)
        return sample

    def cancel(self, samples: Iterable[Sample]) -> None:
        """Stop those that are not done yet; what they have produced is wasted."""
        self.cancels += [sample for sample in samples if not sample.is_done]

    def join(self, samples: Iterable[Sample], count: int | None = None) -> Join:
        """Wait for `count` of the samples (all by default)."""
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
