"""Closed-loop simulations of measured rows: what TTFT and TPOT come out under a stated recipe.

What such a benchmark does to TTFT depends on how its requests fall together. A table does not say how many there
were, how much their lengths varied and what the token budget was: these are the recipe. It moves TPOT little.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ttsim_des.deployment import deploy
from ttsim_des.latency.calibration import UNFITTED, Calibration
from ttsim_des.metrics.columns import column
from ttsim_des.records.long_table import whole
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Scenario
from ttsim_des.simulation.run import simulate
from ttsim_des.units import NS_PER_S
from ttsim_des.validation.closed_table import ClosedRow
from ttsim_des.workload.queries import QuerySource


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the benchmark is taken to have done, and with what engine."""

    engine: str = "vllm-0.12"
    jitter: float = 0.05
    """Standard deviation of the logarithm of prompt and output lengths; 0: all equal, and requests march in step."""
    requests_per_concurrency: int = 6
    """Requests in all for each one in flight. The first come all together and are counted."""
    max_num_batched_tokens: int | None = 16384
    """The engine file's default when None."""
    kv_dtype: str = "bf16"
    unequal_contexts: bool | None = None
    async_scheduling: bool | None = None
    seed: int = 0
    calibration: Calibration = UNFITTED


@dataclass(frozen=True, slots=True)
class ClosedResult:
    """A row and what the simulation made of it, in seconds; `num_gpu_blocks` was derived from the GPU's memory."""

    row: ClosedRow
    ttft_s: float
    tpot_s: float
    num_gpu_blocks: int

    @property
    def ttft_ratio(self) -> float:
        """Simulated over measured."""
        return self.ttft_s / self.row.ttft_s

    @property
    def tpot_ratio(self) -> float:
        """Simulated over measured."""
        return self.tpot_s / self.row.tpot_s


def scenario_of(row: ClosedRow, recipe: Recipe) -> Scenario:
    """The scenario that stands for one row."""

    def lengths(tokens: int) -> dict[str, Any]:
        if not recipe.jitter:
            return {"distribution": "constant", "tokens": tokens}
        return {
            "distribution": "lognormal",
            "mean": float(tokens),
            "query_sigma": recipe.jitter,
            "max": _longest(tokens),
        }

    engine = {
        "max_num_batched_tokens": recipe.max_num_batched_tokens,
        "async_scheduling": recipe.async_scheduling,
    }
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "closed-loop",
            "seed": recipe.seed,
            "experiment": {"kind": "terminating", "queries": row.concurrency * recipe.requests_per_concurrency},
            "workload": {
                "max_tokens": _longest(row.output_tokens),
                "arrivals": {"process": "closed_loop", "concurrency": row.concurrency},
                "prompt": lengths(row.input_tokens),
                "output": lengths(row.output_tokens),
            },
            "cluster": {
                "gpu": row.gpu,
                "model": row.model,
                "tp": row.tp,
                "dtype": row.dtype,
                "kv_dtype": recipe.kv_dtype,
                "engine": recipe.engine,
            },
            "engine": {name: value for name, value in engine.items() if value is not None},
            "latency": {"unequal_contexts": recipe.unequal_contexts},
        }
    )


def _longest(tokens: int) -> int:
    """Far enough from the mean that the cap is never felt at the jitters that make sense."""
    return 2 * tokens


def simulate_row(row: ClosedRow, recipe: Recipe) -> ClosedResult:
    """Simulate one row to its end; InputError where the deployment cannot serve it."""
    scenario = scenario_of(row, recipe)
    deployment = deploy(scenario, Path(), recipe.calibration)
    source = QuerySource(scenario.workload, Streams(recipe.seed), Path(), queries=scenario.experiment.queries)
    requests = whole(simulate(scenario, deployment, source, None).tables.requests)
    arrival, first, finish, tokens = (
        column(requests, name) for name in ("arrival_ns", "first_token_ns", "finish_ns", "output_tokens")
    )
    several = tokens > 1
    return ClosedResult(
        row,
        float((first - arrival).mean()) / NS_PER_S,
        float(((finish - first)[several] / (tokens[several] - 1)).mean()) / NS_PER_S,
        deployment.engine_config.num_gpu_blocks,
    )


def simulate_rows(rows: Sequence[ClosedRow], recipe: Recipe) -> list[ClosedResult]:
    """Simulate all rows, side by side where the machine has several cores."""
    workers = min(os.cpu_count() or 1, len(rows))
    if workers == 1:
        return [simulate_row(row, recipe) for row in rows]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(partial(simulate_row, recipe=recipe), rows, chunksize=4))


def summarise(results: Iterable[ClosedResult]) -> dict[str, dict[str, float | None]]:
    """Mean absolute errors and biases in percent, in the form of `compare`."""
    results = list(results)
    found: dict[str, dict[str, float | None]] = {}
    for name, ratios in (
        ("tpot", [result.tpot_ratio for result in results]),
        ("ttft", [result.ttft_ratio for result in results]),
    ):
        errors = [100 * (ratio - 1) for ratio in ratios]
        found[f"{name}_mape_pct"] = _only(sum(map(abs, errors)) / len(errors))
        found[f"{name}_bias_pct"] = _only(sum(errors) / len(errors))
    return found


def _only(simulated: float) -> dict[str, float | None]:
    return {"measured": 0.0, "simulated": simulated, "error_pct": None}


def rows_of(results: Iterable[ClosedResult]) -> list[dict[str, Any]]:
    """Each row with what was measured and simulated, errors in percent."""
    return [
        {
            **asdict(result.row),
            "simulated_ttft_s": result.ttft_s,
            "simulated_tpot_s": result.tpot_s,
            "ttft_error_pct": 100 * (result.ttft_ratio - 1),
            "tpot_error_pct": 100 * (result.tpot_ratio - 1),
            "num_gpu_blocks": result.num_gpu_blocks,
        }
        for result in results
    ]


def described(recipe: Recipe) -> dict[str, Any]:
    """What was assumed, for people and for provenance."""
    budget = recipe.max_num_batched_tokens
    found: dict[str, Any] = {
        "engine": recipe.engine,
        "length_jitter": recipe.jitter,
        "requests_per_concurrency": recipe.requests_per_concurrency,
        "max_num_batched_tokens": "the engine file's" if budget is None else budget,
        "kv_dtype": recipe.kv_dtype,
        "seed": recipe.seed,
    }
    for name in ("unequal_contexts", "async_scheduling"):
        if (value := getattr(recipe, name)) is not None:
            found[name] = value
    return found
