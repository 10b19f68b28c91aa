"""The work that a scenario asks for, known before anything is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ttsim_des.errors import InputError, Problem
from ttsim_des.scenario.schema import Limits, Scenario
from ttsim_des.workload.queries import query_lengths
from ttsim_des.workload.strategies.work import strategy_work
from ttsim_des.workload.traces import scenario_trace


@dataclass(frozen=True, slots=True)
class ExpectedWork:
    """Totals of a run, and what one request brings on average and at most.

    For strategies that cancel samples or decide as they go, requests and output tokens are those of all that they may
    ask for.
    """

    queries: int
    requests: int
    output_tokens: float
    """Expected total, every output cut at `max_tokens`."""
    output_tokens_max: int
    """No run of this scenario generates more."""
    prompt_tokens_mean: float
    """Of one request, the shared prefix included."""
    prompt_tokens_max: int
    output_tokens_mean: float
    """Of one request, scores included, cut at `max_tokens`."""
    chains: float
    """Whole chains that are generated, in one request or in several."""
    chain_tokens_mean: float
    """Of one of them, cut at `max_tokens`."""
    offered_queries_per_s: float | None
    """`None` when the load adapts to the system (closed loop) or has no rate (all together)."""

    @property
    def offered_requests_per_s(self) -> float | None:
        """Requests offered per second; `None` as for `offered_queries_per_s`."""
        return self._offered(self.requests / self.queries)

    @property
    def offered_output_tokens_per_s(self) -> float | None:
        """Output tokens that the arrivals ask for per second; `None` as for `offered_queries_per_s`."""
        return self._offered(self.output_tokens / self.queries)

    def _offered(self, per_query: float) -> float | None:
        return None if self.offered_queries_per_s is None else self.offered_queries_per_s * per_query


def expected_work(scenario: Scenario, base_dir: Path) -> ExpectedWork:
    """What the scenario asks for; reads its traces and length tables.

    Raises `InputError` when one of these files is unusable or a trace has fewer rows than queries are asked for.
    """
    workload, queries = scenario.workload, scenario.experiment.queries
    trace = scenario_trace(workload.arrivals, base_dir)
    if trace is not None:
        trace = trace.first(queries)
    prompts, outputs = query_lengths(workload, trace, base_dir)
    per_query = strategy_work(workload, base_dir)
    requests, chains = queries * per_query.requests, queries * per_query.chains
    output_tokens_mean = outputs.mean(workload.max_tokens)
    if workload.arrivals.process in ("closed_loop", "together"):
        offered = None
    else:
        offered = workload.arrivals.rate_per_s if trace is None else trace.rate_per_s()
    return ExpectedWork(
        queries=queries,
        requests=requests,
        output_tokens=chains * output_tokens_mean,
        output_tokens_max=requests * min(outputs.largest(), workload.max_tokens),
        prompt_tokens_mean=workload.shared_prefix_tokens + prompts.mean(prompts.largest()),
        prompt_tokens_max=workload.shared_prefix_tokens + prompts.largest() + per_query.prompt_growth,
        output_tokens_mean=chains * output_tokens_mean / requests,
        chains=chains,
        chain_tokens_mean=output_tokens_mean,
        offered_queries_per_s=offered,
    )


def check_limits(work: ExpectedWork, limits: Limits) -> None:
    """Raise `InputError` when the expected work is above the scenario's limits."""
    asked = {"requests": work.requests, "output_tokens": work.output_tokens}
    problems = [
        Problem(
            f"the scenario asks for about {value:,.0f} {name.replace('_', ' ')}, its limit is {limit:,}",
            key=f"limits.{name}",
            expected="less work, or a higher limit",
        )
        for name, value in asked.items()
        if value > (limit := getattr(limits, name))
    ]
    if problems:
        raise InputError(problems)
