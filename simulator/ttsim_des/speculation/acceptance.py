"""Acceptance processes: for every output position of a request, would a draft of that token be taken?

Each position has a uniform number of its own, so the same draft meets the same luck whatever the number of drafts and
whenever it is made. docs/speculation.md says which process fits which method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ttsim_des.engine.speculation import Drafting, RunDrafting, TabledDrafting
from ttsim_des.rng import Streams

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_WIDTH = 256
"""Positions drawn as one entity of a stream."""
_ENTITIES = 1 << 16
"""Entities of a request: room for 16 million positions."""
_TWO_32 = 1 << 32


class Acceptance(Protocol):
    """Draws what becomes of a request's drafts."""

    def drafting(self, streams: Streams, query_id: int, sample: int, output_tokens: int) -> Drafting:
        """The luck of a sample of a query that will have `output_tokens` tokens."""
        ...

    def mean_tokens_per_step(self, drafts: int) -> float:
        """Expected tokens of a step with that many drafts."""
        ...


@dataclass(frozen=True, slots=True)
class PositionAcceptance:
    """Draft j (from 0) is taken with probability `rates[j]` when those before it were; the last rate goes on.

    One rate is the iid process. With `concentration` each request has a factor of its own: its first rate is drawn from
    a beta distribution with mean `rates[0]` and that concentration (a + b), the odds of the others move along.
    """

    most: int
    rates: tuple[float, ...]
    concentration: float | None = None

    def drafting(self, streams: Streams, query_id: int, sample: int, output_tokens: int) -> Drafting:
        """See `Acceptance`."""
        bits = _bits(streams, "acceptance", query_id, sample, output_tokens + self.most + 1)
        if self.concentration is None and len(self.rates) == 1:
            return _run_drafting(bits[1:] >= _threshold(self.rates[0]), self.most)
        rates = self._rates_of((int(bits[0]) + 0.5) / _TWO_32)
        if len(set(rates)) == 1:
            return _run_drafting(bits[1:] >= _threshold(rates[0]), self.most)
        numbers = _as_uniforms(bits)
        size = numbers.size - self.most
        alive: Flags = numbers[1 : 1 + size] < rates[0]
        taken = alive.astype(np.uint8)
        for place in range(1, self.most):
            alive = alive & (numbers[1 + place : 1 + place + size] < rates[place])
            taken += alive
        return TabledDrafting(taken.tobytes())

    def mean_tokens_per_step(self, drafts: int) -> float:
        """See `Acceptance`; of a request at the mean."""
        return _mean_tokens(_extended(self.rates, drafts))

    def _rates_of(self, number: float) -> tuple[float, ...]:
        rates = _extended(self.rates, self.most)
        if self.concentration is None:
            return rates
        from scipy.special import betaincinv

        mean = rates[0]
        first = float(betaincinv(mean * self.concentration, (1 - mean) * self.concentration, number))
        first = min(max(first, 1e-9), 1 - 1e-9)
        odds = first / (1 - first) / (mean / (1 - mean))
        return tuple(rate if rate in (0.0, 1.0) else odds * rate / (1 - rate + odds * rate) for rate in rates)


@dataclass(frozen=True, slots=True)
class OutputAcceptance:
    """The rate depends on how far the output has come: `rates[i]` at `tokens[i]`, linear between, level beyond."""

    most: int
    tokens: tuple[int, ...]
    rates: tuple[float, ...]

    def drafting(self, streams: Streams, query_id: int, sample: int, output_tokens: int) -> Drafting:
        """See `Acceptance`."""
        numbers = _as_uniforms(_bits(streams, "acceptance", query_id, sample, output_tokens + self.most))
        rates = np.interp(np.arange(numbers.size), self.tokens, self.rates)
        return _run_drafting(numbers >= rates, self.most)

    def mean_tokens_per_step(self, drafts: int) -> float:
        """See `Acceptance`; at the mean of the given rates."""
        return _mean_tokens((sum(self.rates) / len(self.rates),) * drafts)


@dataclass(frozen=True, slots=True)
class CopyingAcceptance:
    """n-gram look-up: match or nothing, then long runs.

    Where nothing was copied the drafter finds a match with probability `offer`; then the first draft is right with
    `enter`, and what follows with `stay`. Behind a copied token it always finds a match. Without a match nothing is
    drafted.
    """

    most: int
    enter: float
    stay: float
    offer: float

    def drafting(self, streams: Streams, query_id: int, sample: int, output_tokens: int) -> Drafting:
        """See `Acceptance`."""
        size = output_tokens + self.most
        numbers = _as_uniforms(_bits(streams, "acceptance", query_id, sample, size))
        matches = _as_uniforms(_bits(streams, "offers", query_id, sample, size)) < self.offer
        begins, goes_on = matches & (numbers < self.enter), numbers < self.stay
        copies = _followed(begins, goes_on)
        matches[1:] |= copies[:-1]
        return TabledDrafting(_runs(copies, self.most), (matches * np.uint8(self.most)).tobytes())

    def mean_tokens_per_step(self, drafts: int) -> float:
        """See `Acceptance`; as seen by a step at a random position."""
        begins = self.offer * self.enter
        share = begins / (1 - self.stay + begins) if begins else 0.0
        offered = share + (1 - share) * self.offer
        first = (share * self.stay + (1 - share) * begins) / offered if offered else 0.0
        return 1 + offered * first * _mean_tokens((self.stay,) * (drafts - 1)) if drafts else 1.0


@dataclass(frozen=True, slots=True)
class RecordedAcceptance:
    """Recorded streams of (drafts, accepted) per step; each request takes one at random and starts over at its end."""

    most: int
    streams_of_steps: tuple[tuple[tuple[int, int], ...], ...]

    def drafting(self, streams: Streams, query_id: int, sample: int, output_tokens: int) -> Drafting:
        """See `Acceptance`."""
        number = (int(_bits(streams, "acceptance", query_id, sample, 1)[0]) + 0.5) / _TWO_32
        steps = self.streams_of_steps[int(number * len(self.streams_of_steps))]
        size, copies = output_tokens + self.most, bytearray()
        while len(copies) < size:
            for drafts, accepted in steps:
                copies += b"\x01" * accepted
                # The token behind the accepted ones: a wrong draft's place, or one that was not drafted.
                copies += b"\x01" if 0 < drafts == accepted else b"\x00"
        taken = np.frombuffer(copies, dtype=np.bool_)[:size]
        return _run_drafting(~taken, self.most)

    def mean_tokens_per_step(self, drafts: int) -> float:
        """See `Acceptance`; of all recorded steps that drafted as many."""
        taken = [min(accepted, drafts) for steps in self.streams_of_steps for made, accepted in steps if made >= drafts]
        return 1 + sum(taken) / len(taken) if taken else 1.0


@dataclass(frozen=True, slots=True)
class OracleDrafts:
    """A bound: each sequence drafts just as much as will be accepted."""

    most: int
    process: Acceptance

    def drafting(self, streams: Streams, query_id: int, sample: int, output_tokens: int) -> Drafting:
        """See `Acceptance`."""
        real = self.process.drafting(streams, query_id, sample, output_tokens)
        taken = bytes(real.accepted(known, real.drafts(known, self.most)) for known in range(output_tokens))
        return TabledDrafting(taken, taken)

    def mean_tokens_per_step(self, drafts: int) -> float:
        """See `Acceptance`."""
        return self.process.mean_tokens_per_step(drafts)


def _bits(streams: Streams, name: str, query_id: int, sample: int, count: int) -> NDArray[np.uint32]:
    """32 random bits for each output position of a sample."""
    entities = -(-count // _WIDTH)
    return streams.bits32(f"{name}/{sample}", query_id * _ENTITIES, entities, _WIDTH)[:count]


def _as_uniforms(bits: NDArray[np.uint32]) -> Floats:
    """Numbers in (0, 1)."""
    numbers = bits.astype(np.float64)
    numbers += 0.5
    numbers /= _TWO_32
    return numbers


def _threshold(rate: float) -> int:
    """Bits below this are a success of that probability."""
    return round(rate * _TWO_32)


def _run_drafting(wrong: Flags, most: int) -> RunDrafting:
    """Drafts that are right or wrong by their positions alone; the last position lies behind the output."""
    wrong[-1] = True
    return RunDrafting(wrong.nonzero()[0], most)


def _followed(begins: Flags, goes_on: Flags) -> Flags:
    """Flags of which each is that of `goes_on` behind a set one and that of `begins` behind one that is not."""
    sure = begins == goes_on
    if not (begins & ~goes_on).any():  # where they differ a token does what the one before did
        last = np.maximum.accumulate(np.where(sure, np.arange(begins.size), -1))
        return np.where(last >= 0, begins[np.maximum(last, 0)], False)
    found, before = np.zeros(begins.size, dtype=np.bool_), False
    for place in range(begins.size):
        before = bool(goes_on[place] if before else begins[place])
        found[place] = before
    return found


def _runs(taken: Flags, most: int) -> bytes:
    """For each position: how many in a row are taken from there on, at most `most`."""
    size = taken.size - most + 1
    alive = taken[:size].view(np.uint8)
    lengths = alive.copy()
    flags = taken.view(np.uint8)
    for place in range(1, most):
        alive = alive & flags[place : place + size]
        lengths += alive
    return lengths.tobytes()


def _extended(rates: Sequence[float], size: int) -> tuple[float, ...]:
    return (*rates[:size], *(rates[-1],) * (size - len(rates)))


def _mean_tokens(rates: Sequence[float]) -> float:
    """Tokens of a step: one, and each draft when all before it were taken too."""
    total = reached = 1.0
    for rate in rates:
        reached *= rate
        total += reached
    return total
