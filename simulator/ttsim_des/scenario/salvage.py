"""The parts of a scenario that are right when others are wrong, so that one mistake does not hide another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ttsim_des.scenario.schema import (
    Arrivals,
    Cluster,
    ConstantTokens,
    Engine,
    Experiment,
    Latency,
    LognormalTokens,
    OutcomeTokens,
    Pool,
    Scenario,
    StrategyTable,
    TableTokens,
    Workload,
)
from ttsim_des.scenario.validate import validate_table


@dataclass(frozen=True)
class Parts:
    """The tables of a scenario that are right by themselves; None stands for one that is not."""

    experiment: Experiment | None
    strategy: StrategyTable | None
    arrivals: Arrivals | None
    prompt: ConstantTokens | LognormalTokens | TableTokens | None
    output: ConstantTokens | LognormalTokens | TableTokens | OutcomeTokens | None
    max_tokens: int | None
    shared_prefix_tokens: int | None
    cluster: Cluster | None
    engine: Engine | None
    latency: Latency | None
    has_verifier: bool | None
    """Whether there is a table [verifier]; None where it is wrong by itself."""


def parts_of(scenario: Scenario) -> Parts:
    """All the parts of a valid scenario."""
    workload = scenario.workload
    return Parts(
        experiment=scenario.experiment,
        strategy=workload.strategy,
        arrivals=workload.arrivals,
        prompt=workload.prompt,
        output=workload.output,
        max_tokens=workload.max_tokens,
        shared_prefix_tokens=workload.shared_prefix_tokens,
        cluster=scenario.cluster,
        engine=scenario.engine,
        latency=scenario.latency,
        has_verifier=scenario.verifier is not None,
    )


def salvage(values: Mapping[str, Any]) -> Parts:
    """The parts of a scenario that has something wrong in it, so that one mistake does not hide another."""
    workload = values.get("workload")
    workload = workload if isinstance(workload, Mapping) else {}

    def tokens(name: str, default: int | None) -> int | None:
        value = workload.get(name, default)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    return Parts(
        experiment=validate_table(Experiment, values.get("experiment", {})),
        strategy=validate_table(StrategyTable, workload.get("strategy", {})),
        arrivals=validate_table(Arrivals, workload["arrivals"]) if "arrivals" in workload else None,
        prompt=_distribution(workload.get("prompt")),
        output=_distribution(workload.get("output")),
        max_tokens=tokens("max_tokens", None),
        shared_prefix_tokens=tokens("shared_prefix_tokens", 0),
        cluster=validate_table(Cluster, values.get("cluster")),
        engine=validate_table(Engine, values.get("engine", {})),
        latency=validate_table(Latency, values.get("latency", {})),
        has_verifier=_has_verifier(values),
    )


def stand_in(parts: Parts) -> Scenario:
    """A valid scenario with harmless values in place of the parts that are None: to look for mistakes in the others."""
    one_token = ConstantTokens(distribution="constant", tokens=1)
    workload = Workload(
        strategy=parts.strategy or StrategyTable(),
        arrivals=parts.arrivals or Arrivals(process="together"),
        prompt=parts.prompt or one_token,
        output=parts.output or one_token,
        max_tokens=parts.max_tokens or 1,
        shared_prefix_tokens=parts.shared_prefix_tokens or 0,
    )
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "stand-in",
            "experiment": parts.experiment or Experiment(queries=1),
            "workload": workload,
            "cluster": parts.cluster or Cluster(gpu="none", model="none"),
            "engine": parts.engine or Engine(),
            "latency": parts.latency or Latency(),
        }
    )


def _has_verifier(values: Mapping[str, Any]) -> bool | None:
    if "verifier" not in values:
        return False
    return None if validate_table(Pool, values["verifier"]) is None else True


def _distribution(values: Any) -> Any:
    kinds: dict[str, type[BaseModel]] = {
        "constant": ConstantTokens,
        "lognormal": LognormalTokens,
        "table": TableTokens,
        "outcomes": OutcomeTokens,
    }
    name = values.get("distribution") if isinstance(values, Mapping) else None
    kind = kinds.get(name) if isinstance(name, str) else None
    return validate_table(kind, values) if kind is not None else None
