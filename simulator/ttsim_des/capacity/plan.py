"""The cheapest configuration that keeps SLOs.

What needs no simulation comes first (see `candidate`): what cannot be deployed, what is offered more than its best
possible throughput, what cannot keep an SLO even without load. The others are tried from the cheapest on, and the first
that surely keeps its SLOs ends the search for those that cost no less.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from ttsim_des.capacity.candidate import USD, Candidate, survey
from ttsim_des.capacity.grid import Variant
from ttsim_des.capacity.question import Question
from ttsim_des.capacity.race import race
from ttsim_des.errors import bad_input

FEW = 32
"""Variants that are looked at faster than processes start."""
NO_PRICE = "no price of its GPU: set cluster.gpu_hour_usd, or minimise cost.gpu_s_per_query"


@dataclass(frozen=True, slots=True)
class Choice:
    """All candidates, and the best of those that surely keep the SLOs; None when there is none."""

    candidates: list[Candidate]
    objective: str
    best: Candidate | None

    @property
    def simulated(self) -> int:
        """Candidates that were simulated."""
        return sum(bool(candidate.runs) and not candidate.twin for candidate in self.candidates)


def choose(question: Question, variants: Sequence[Variant], objective: str = USD, *, prune: bool = True) -> Choice:
    """The variant with the smallest objective among those that surely keep all SLOs; of equals, the first as given.

    Without `prune` every variant that can be deployed is simulated: the same choice, the long way. InputError when none
    of them can be.
    """
    candidates = surveyed(question, variants, objective, prune=prune)
    best: Candidate | None = None

    def rank(candidate: Candidate) -> tuple[bool, float, int]:
        least = candidate.at_least(objective)
        return least is None, least or 0.0, candidate.place

    def beaten_by(candidate: Candidate) -> str:
        if best is None or _may_beat(candidate, best, objective):
            return ""
        return f"cannot be cheaper than {best.label}"

    def arrive(candidate: Candidate) -> None:
        nonlocal best
        if is_better(candidate, best, objective):
            best = candidate

    waiting = sorted((candidate for candidate in candidates if not candidate.why_not), key=rank)
    race(question, waiting, beaten_by, arrive, prune=prune)
    return Choice(candidates, objective, best)


def is_better(candidate: Candidate, best: Candidate | None, objective: str) -> bool:
    """Whether a candidate that was simulated keeps its SLOs and takes the place of the best so far."""
    value = candidate.value(objective)
    if candidate.state != "holds" or value is None:
        return False
    reached = None if best is None else best.value(objective)
    if best is None or reached is None:
        return True
    return (value, candidate.place) < (reached, best.place)


def _may_beat(candidate: Candidate, best: Candidate, objective: str) -> bool:
    """Whether a candidate can be chosen instead of the best so far: for less, or for as much and given earlier."""
    least, reached = candidate.at_least(objective), best.value(objective)
    return least is None or reached is None or (least, candidate.place) < (reached, best.place)


def surveyed(question: Question, variants: Sequence[Variant], objective: str, *, prune: bool) -> list[Candidate]:
    """As `look_at`; InputError when none of them can be deployed."""
    candidates = look_at(question, variants, objective, prune=prune)
    if not any(candidate.gpus for candidate in candidates):
        raise bad_input(f"no variant can be deployed: {candidates[0].why_not}", key="--vary")
    return candidates


def look_at(question: Question, variants: Sequence[Variant], objective: str, *, prune: bool) -> list[Candidate]:
    """Candidates with what is known without simulating, and why some need not be simulated."""
    one = partial(survey, question.scenario, question.overrides, question.seed)
    if len(variants) < FEW:
        candidates = [one(variant) for variant in variants]
    else:
        with ProcessPoolExecutor() as pool:
            candidates = list(pool.map(one, variants, chunksize=FEW // 2))
    for place, candidate in enumerate(candidates):
        candidate.place = place
    deployed = [candidate for candidate in candidates if candidate.gpus]
    if not prune:
        for candidate in deployed:
            candidate.why_not = ""
    for candidate in deployed:
        if objective == USD and USD not in {**candidate.exact, **candidate.bounds}:
            candidate.why_not = NO_PRICE
    return candidates
