"""The planner's two questions: the cheapest configuration that keeps SLOs, and the largest load that one keeps.

Bounds that need no simulation come first: what cannot be deployed, what is offered more than its best possible
throughput, and, once a configuration is known that keeps the SLOs, what cannot be cheaper. All simulations of a
question share their draws (common random numbers), and their results lie in a sweep's directory, so that nothing runs
twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from ttsim_des.api import load
from ttsim_des.capacity.frontier import Variant
from ttsim_des.capacity.slo import Slo, State, worst
from ttsim_des.capacity.sweep import plan_sweep, run_sweep
from ttsim_des.deployment import deploy
from ttsim_des.errors import InputError, bad_input
from ttsim_des.metrics.flat import Flat, in_all
from ttsim_des.workload.expected import expected_work

USD, GPU_SECONDS = "cost.query_usd", "cost.gpu_s_per_query"
RATE = "workload.arrivals.rate_per_s"
RATE_SLACK = 1.1
"""How much faster than they were offered queries may seem to be served in a window of finite length."""
MORE_REPLICATIONS = 4
"""While it is unclear whether SLOs are kept, up to so many times the replications asked for."""
LEAST_SHARE = 1 / 256
"""Of the best throughput: below, a load that misses its SLOs misses them at any."""
Progress = Callable[[str], None]


@dataclass(slots=True)
class Candidate:
    """A configuration: what is known without simulating it, and what came of the simulation.

    `why_not`: why it was not simulated, or not to its end. `bound`: no smaller value of the objective is possible.
    """

    variant: Variant
    why_not: str = ""
    bound: float | None = None
    gpus: int = 0
    offered_share: float | None = None
    runs: list[Flat] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)

    @property
    def state(self) -> State | None:
        """Of all SLOs together; None when it was not simulated."""
        return worst(self.states) if self.states else None

    def mean(self, metric: str) -> float | None:
        """Mean over replications; None when one of them does not give it."""
        known = in_all(self.runs, metric)
        return fmean(known) if known else None


@dataclass(frozen=True, slots=True)
class Choice:
    """All candidates, and the best of those that surely keep the SLOs; None when there is none."""

    candidates: list[Candidate]
    objective: str
    best: Candidate | None
    simulated: int


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


def survey(scenario: str, overrides: tuple[str, ...], seed: int | None, objective: str, variant: Variant) -> Candidate:
    """What is known of a variant without simulating it."""
    try:
        loaded = load(scenario, [*overrides, *variant], seed)
        deployment = deploy(loaded.scenario, loaded.base_dir)
    except InputError as error:
        return Candidate(variant, why_not=error.problems[0].message)
    work = expected_work(loaded.scenario, loaded.base_dir)
    pools = [deployment, *deployment.pools.values()]
    found = Candidate(variant, gpus=sum(pool.gpus for pool in pools))
    if objective == USD and any(pool.gpu_hour_usd is None for pool in pools):
        found.why_not = "no price of its GPU: set cluster.gpu_hour_usd, or minimise cost.gpu_s_per_query"
        return found
    rate, offered = work.offered_queries_per_s, work.offered_output_tokens_per_s
    if rate is None or offered is None:
        return found
    found.offered_share = offered / deployment.best_throughput(loaded.scenario.workload, work).output_tokens_per_s
    if found.offered_share > 1:
        found.why_not = f"offered {100 * found.offered_share:.0f} % of the best possible throughput"
    if objective == GPU_SECONDS:
        found.bound = found.gpus / rate / RATE_SLACK
    elif objective == USD:
        hourly = sum(pool.gpus * (pool.gpu_hour_usd or 0.0) for pool in pools)
        found.bound = hourly / 3600 / rate / RATE_SLACK
    return found


def choose(
    scenario: str,
    variants: Sequence[Variant],
    slos: Sequence[Slo],
    overrides: Sequence[str],
    seed: int | None,
    out: Path,
    *,
    objective: str = USD,
    replications: int = 5,
    workers: int | None = None,
    prune: bool = True,
    progress: Progress = lambda _: None,
) -> Choice:
    """The variant with the smallest objective among those that surely keep all SLOs.

    Without `prune` every variant that can be deployed is simulated: the same choice, the long way. InputError when none
    of them can be.
    """
    workers = min(os.cpu_count() or 1, len(variants)) if workers is None else workers
    one = partial(survey, scenario, tuple(overrides), seed, objective)
    if workers == 1:
        candidates = [one(variant) for variant in variants]
    else:
        with ProcessPoolExecutor(workers) as pool:
            candidates = list(pool.map(one, variants, chunksize=8))
    if all(not candidate.gpus for candidate in candidates):
        raise bad_input(f"no variant can be deployed: {candidates[0].why_not}", key="--vary")
    if not prune:
        for candidate in candidates:
            candidate.why_not = "" if candidate.gpus else candidate.why_not
    waiting = sorted(
        (candidate for candidate in candidates if not candidate.why_not),
        key=lambda candidate: (candidate.bound is None, candidate.bound or 0.0, candidate.offered_share or 0.0),
    )
    best: Candidate | None = None
    simulated = 0
    while waiting:
        batch, waiting = waiting[:workers], waiting[workers:]
        if prune and best is not None and (reached := best.mean(objective)) is not None:
            for candidate in batch:
                if candidate.bound is not None and candidate.bound > reached:
                    candidate.why_not = f"cannot be cheaper than {_named(best)}"
            batch = [candidate for candidate in batch if not candidate.why_not]
            if not batch:
                continue
        progress(f"{simulated} simulated, {len(waiting)} waiting: {_named(batch[0])}")
        simulated += len(batch)
        number, rest = 1, batch
        while rest and number <= MORE_REPLICATIONS * replications:
            _simulate(scenario, rest, slos, overrides, seed, out, number, workers)
            number = replications if number == 1 else 2 * number
            rest = [candidate for candidate in rest if candidate.state == "unclear"]
        for candidate in batch:
            value = candidate.mean(objective)
            if candidate.state == "holds" and value is not None:
                reached = None if best is None else best.mean(objective)
                best = candidate if reached is None or value < reached else best
    return Choice(candidates, objective, best, simulated)


def _named(candidate: Candidate) -> str:
    return " ".join(candidate.variant) or "the scenario as it is"


def _simulate(
    scenario: str,
    candidates: Sequence[Candidate],
    slos: Sequence[Slo],
    overrides: Sequence[str],
    seed: int | None,
    out: Path,
    replications: int,
    workers: int,
) -> None:
    """Run candidates and judge them; one whose queue grows in a replication keeps nothing."""
    sweep = plan_sweep(scenario, [candidate.variant for candidate in candidates], overrides, seed, replications)
    results = run_sweep(sweep, out, workers)
    for place, candidate in enumerate(candidates):
        own = results[place * replications : (place + 1) * replications]
        candidate.runs = [result["metrics"] for result in own]
        candidate.states = {str(slo): slo.state(candidate.runs) for slo in slos}
        if not all(result["is_stable"] for result in own):
            candidate.why_not = "the queue grows"
            candidate.states = dict.fromkeys(candidate.states, "fails")


def largest_load(
    scenario: str,
    slos: Sequence[Slo],
    overrides: Sequence[str],
    seed: int | None,
    out: Path,
    *,
    replications: int = 5,
    resolution: float = 0.02,
    workers: int | None = None,
    progress: Progress = lambda _: None,
) -> LargestLoad:
    """Bisect the arrival rate until the largest that keeps the SLOs is known to `resolution` of itself.

    A load is judged by its interval; while that straddles a limit replications are added, at last its mean decides.
    InputError where arrivals have no rate.
    """
    loaded = load(scenario, overrides, seed)
    work = expected_work(loaded.scenario, loaded.base_dir)
    if work.offered_queries_per_s is None or loaded.scenario.workload.arrivals.file is not None:
        raise bad_input("arrivals of this scenario have no rate to vary", key="--largest-load", expected=RATE)
    deployment = deploy(loaded.scenario, loaded.base_dir)
    possible = deployment.best_throughput(loaded.scenario.workload, work).output_tokens_per_s
    best_possible = possible * work.queries / work.output_tokens
    workers = (os.cpu_count() or 1) if workers is None else workers
    probes: list[Probe] = []
    kept: tuple[float, list[Flat]] | None = None
    broken: float | None = None

    def holds(rate: float) -> bool:
        nonlocal kept, broken
        rate = float(f"{rate:.4g}")
        progress(f"{rate:.4g} queries/s")
        number = replications
        candidate = Candidate((f"{RATE}={rate!r}",))
        while True:
            _simulate(scenario, [candidate], slos, overrides, seed, out, number, workers)
            if candidate.state != "unclear" or 2 * number > MORE_REPLICATIONS * replications:
                break
            number *= 2
        met = candidate.state == "holds" or (
            candidate.state == "unclear" and all(slo.is_met(candidate.mean(slo.metric) or 0.0) for slo in slos)
        )
        probes.append(Probe(rate, candidate.states, number, met))
        if met:
            kept = (rate, candidate.runs)
        else:
            broken = rate
        return met

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
