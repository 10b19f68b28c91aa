"""A configuration: what can be said of it without simulating it, and what its simulation said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from ttsim_des.api import load
from ttsim_des.capacity.grid import Variant
from ttsim_des.capacity.limits import Limits, limits_of
from ttsim_des.capacity.slo import Slo, State, worst
from ttsim_des.deployment import Deployment, deploy
from ttsim_des.errors import InputError
from ttsim_des.metrics.flat import Flat, in_all
from ttsim_des.scenario.schema import Scenario
from ttsim_des.scenario.toml_writer import to_toml
from ttsim_des.workload.expected import ExpectedWork, expected_work
from ttsim_des.workload.strategies import STRATEGIES

USD, GPU_SECONDS = "cost.query_usd", "cost.gpu_s_per_query"
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "p99_9")
ACCURACY = "accuracy.share"
HITS = "prefix_cache.cached_tokens"
TIMELESS = frozenset(
    (
        "single",
        "best_of_n",
        "self_consistency",
        "beam_search",
        "dvts",
        "rebase",
        "sequential_revision",
        "budget_forcing",
    )
)
"""Strategies whose answer does not depend on which sample ends first, so that load does not change their accuracy."""


@dataclass(slots=True)
class Candidate:
    """One configuration.

    `why_not`: why it was not simulated, or not to its end. `exact`: costs that are known without simulating: in a
    steady state as many queries leave as come, so that a query costs all GPUs for the time between two of them.
    `bounds`: of other metrics, in each replication, what they cannot fall below. `unloaded`: of metrics that load does
    not change, in each replication, what they are.
    """

    variant: Variant
    place: int = 0
    """Among those given: of equals the first is chosen."""
    why_not: str = ""
    gpus: int = 0
    offered_share: float | None = None
    rate_per_s: float | None = None
    """At which queries are told to arrive; None for arrivals without a rate."""
    least_token_s: float = 0.0
    workload: str = ""
    """Candidates with equal ones are asked the same questions of the same draws, whatever serves them."""
    spread: str = ""
    """Over how many replicas, and how."""
    is_timeless: bool = False
    limits: Limits | None = None
    """None where other limits may change a run although they are never reached."""
    exact: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, list[float]] = field(default_factory=dict)
    unloaded: dict[str, list[float]] = field(default_factory=dict)
    hits: list[float] = field(default_factory=list)
    """Prompt tokens found in the prefix cache without load, in each replication: load can only make them fewer."""
    runs: list[Flat] = field(default_factory=list)
    twin: str = ""
    """The candidate whose runs these are."""
    states: dict[str, State] = field(default_factory=dict)
    is_stable: bool = True

    @property
    def state(self) -> State | None:
        """Of all SLOs together; None when it was not simulated."""
        return worst(self.states) if self.runs else None

    @property
    def family(self) -> str:
        """Candidates of one differ in limits of the engine alone."""
        return self.label if self.limits is None else self.limits.family

    @property
    def label(self) -> str:
        """For people."""
        return " ".join(self.variant) or "the scenario as it is"

    def value(self, metric: str) -> float | None:
        """Exact, or the mean over replications; None where one of them does not give it."""
        if metric in self.exact:
            return self.exact[metric]
        known = in_all(self.runs, metric) if self.runs else None
        return fmean(known) if known else None

    def at_least(self, metric: str) -> float | None:
        """No smaller value of a metric is possible; None where nothing is known."""
        if metric in self.exact:
            return self.exact[metric]
        known = self.bounds.get(metric) or self.unloaded.get(metric)
        return fmean(known) if known else None

    def runs_like(self, other: Candidate) -> bool:
        """Whether another one, which was simulated, differs in nothing that mattered to its runs.

        Then this one's runs are the same. Prefixes must have been hit as often as without load (in the replications
        that were run without), so that no number of blocks mattered to that either.
        """
        if self.limits is None or other.limits is None or self.limits.family != other.limits.family:
            return False
        if not self.hits or not other.runs:
            return False
        all_hit = all(run[HITS] == at_most for run, at_most in zip(other.runs, self.hits, strict=False))
        return all_hit and not any(self.limits.matter_to(run, other.limits) for run in other.runs)

    def take_runs_of(self, other: Candidate) -> None:
        """Be told what another one's simulation said."""
        self.runs, self.states, self.is_stable = other.runs, dict(other.states), other.is_stable
        self.twin = other.twin or other.label
        self.why_not = other.why_not

    def cannot_keep(self, slo: Slo) -> bool:
        """Whether an SLO is missed by what is known without simulating."""
        known = self.unloaded.get(slo.metric) or (self.bounds.get(slo.metric) if slo.is_upper else None)
        return known is not None and slo.state([{slo.metric: value} for value in known]) == "fails"


def survey(scenario: str, overrides: Sequence[str], seed: int | None, variant: Variant) -> Candidate:
    """What is known of a variant without simulating anything."""
    try:
        loaded = load(scenario, [*overrides, *variant], seed)
        deployment = deploy(loaded.scenario, loaded.base_dir)
        work = expected_work(loaded.scenario, loaded.base_dir)
    except InputError as error:
        return Candidate(variant, why_not=str(replace(error.problems[0], where="", expected="")))
    return _known(variant, loaded.scenario, deployment, work)


def _known(variant: Variant, scenario: Scenario, deployment: Deployment, work: ExpectedWork) -> Candidate:
    pools = [deployment, *deployment.pools.values()]
    strategy = scenario.workload.strategy
    found = Candidate(
        variant,
        gpus=sum(pool.gpus for pool in pools),
        least_token_s=deployment.least_token_s(),
        rate_per_s=scenario.workload.arrivals.rate_per_s,
        workload=_workload(scenario),
        spread=" ".join(f"{pool.replicas} {pool.router}" for pool in pools),
        limits=limits_of(scenario, deployment),
        is_timeless=strategy.name in TIMELESS and strategy.first is None,
    )
    prices = [pool.gpu_hour_usd for pool in pools]
    hourly = {GPU_SECONDS: 3600.0 * found.gpus}
    if all(price is not None for price in prices):
        hourly[USD] = sum(pool.gpus * (pool.gpu_hour_usd or 0.0) for pool in pools)
    best_queries_per_s = deployment.best_queries_per_s(scenario.workload, work)
    rate = work.offered_queries_per_s
    if rate is not None and scenario.experiment.kind == "steady":
        found.exact = {name: cost / 3600 / rate for name, cost in hourly.items()}
        found.offered_share = rate / best_queries_per_s
        if found.offered_share > 1:
            found.why_not = f"offered {100 * found.offered_share:.0f} % of the best possible throughput"
    else:
        found.bounds = {name: [cost / 3600 / best_queries_per_s] for name, cost in hourly.items()}
    return found


def _workload(scenario: Scenario) -> str:
    """The questions and what is asked of them; empty for a user's strategy, which may do other things under load."""
    if scenario.workload.strategy.name not in STRATEGIES:
        return ""
    return to_toml(scenario.model_dump(by_alias=True, exclude_none=True, include={"workload", "experiment", "seed"}))


def add_bounds(candidate: Candidate, unloaded: Sequence[Flat]) -> None:
    """Add what runs of the candidate's workload tell that had no load, on whatever configuration.

    A query waits for the tokens of its critical path, one after the other.
    """
    for metric, tokens in (("query.latency_s", "query.critical_tokens"), ("request.e2e_s", "request.output_tokens")):
        for name in STATISTICS:
            if (known := in_all(unloaded, f"{tokens}.{name}")) is not None:
                candidate.bounds[f"{metric}.{name}"] = [tokens * candidate.least_token_s for tokens in known]
    for name in STATISTICS:
        candidate.bounds[f"request.tpot_s.{name}"] = [candidate.least_token_s] * len(unloaded)
    candidate.hits = in_all(unloaded, HITS) or []
    if candidate.is_timeless and (shares := in_all(unloaded, ACCURACY)) is not None:
        candidate.unloaded[ACCURACY] = shares
