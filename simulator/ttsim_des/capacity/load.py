"""The largest load that keeps SLOs."""

from __future__ import annotations

from dataclasses import dataclass

from ttsim_des.api import load
from ttsim_des.capacity.candidate import Candidate
from ttsim_des.capacity.question import MORE_REPLICATIONS, Question
from ttsim_des.capacity.slo import State
from ttsim_des.deployment import deploy
from ttsim_des.errors import bad_input
from ttsim_des.metrics.flat import Flat
from ttsim_des.workload.expected import expected_work

RATE = "workload.arrivals.rate_per_s"
LEAST_SHARE = 1 / 256
"""Of the best throughput: below, a load that misses its SLOs misses them at any."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One load that was tried."""

    rate_per_s: float
    states: dict[str, State]
    replications: int
    is_kept: bool


@dataclass(frozen=True, slots=True)
class LargestLoad:
    """The largest load found that keeps the SLOs, and the smallest that does not; None when there is no such."""

    kept_per_s: float | None
    broken_per_s: float | None
    best_possible_per_s: float
    probes: list[Probe]
    runs: list[Flat]
    """The replications at `kept_per_s`."""


def largest_load(question: Question, resolution: float = 0.02) -> LargestLoad:
    """Bisect the arrival rate until the largest that keeps the SLOs is known to `resolution` of itself.

    A load is judged by its interval; while that straddles a limit replications are added, at last its mean decides.
    InputError where arrivals have no rate.
    """
    best_possible = _best_possible_per_s(question)
    probes: list[Probe] = []
    kept: tuple[float, list[Flat]] | None = None
    broken: float | None = None

    def holds(rate: float) -> bool:
        nonlocal kept, broken
        rate = float(f"{rate:.4g}")
        question.progress(f"{rate:.4g} queries/s")
        probe, runs = _probe(question, rate)
        probes.append(probe)
        if probe.is_kept:
            kept = (rate, runs)
        else:
            broken = rate
        return probe.is_kept

    low, high = best_possible * LEAST_SHARE, best_possible
    rate = high / 2
    while not holds(rate):
        high = rate
        rate /= 2
        if rate < low:
            return LargestLoad(None, broken, best_possible, probes, [])
    low = rate
    while high / low > 1 + resolution:
        rate = (low * high) ** 0.5
        if holds(rate):
            low = rate
        else:
            high = rate
    assert kept is not None
    return LargestLoad(kept[0], broken, best_possible, probes, kept[1])


def _best_possible_per_s(question: Question) -> float:
    loaded = load(question.scenario, question.overrides, question.seed)
    work = expected_work(loaded.scenario, loaded.base_dir)
    if work.offered_queries_per_s is None or loaded.scenario.workload.arrivals.file is not None:
        raise bad_input("arrivals of this scenario have no rate to vary", key="--largest-load", expected=RATE)
    deployment = deploy(loaded.scenario, loaded.base_dir)
    return deployment.best_queries_per_s(loaded.scenario.workload, work)


def _probe(question: Question, rate: float) -> tuple[Probe, list[Flat]]:
    """Try one load."""
    number = question.replications
    candidate = Candidate((f"{RATE}={rate!r}",))
    question.simulate([candidate], number)
    while candidate.state == "unclear" and 2 * number <= MORE_REPLICATIONS * question.replications:
        number *= 2
        question.simulate([candidate], number)
    met = candidate.state == "holds" or (
        candidate.state == "unclear" and all(slo.is_met(candidate.value(slo.metric) or 0.0) for slo in question.slos)
    )
    return Probe(rate, candidate.states, number, met), candidate.runs
