"""Small worlds for theory: the public scenario and simulation with an affine step model and no host overhead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ttsim_des.deployment import Deployment
from ttsim_des.engine.config import EngineConfig
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.host import HostOverhead
from ttsim_des.records.tables import Tables
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Scenario
from ttsim_des.simulation.run import simulate
from ttsim_des.workload.arrivals import arrival_times_ns
from ttsim_des.workload.queries import QuerySource

STEP_NS = 1_000_000


def scenario(
    arrivals: dict[str, Any],
    output: dict[str, Any],
    queries: int,
    *,
    strategy: dict[str, Any] | None = None,
    prompt_tokens: int = 1,
    max_tokens: int = 10_000_000,
    seed: int = 1,
    **tables: Any,
) -> Scenario:
    """A steady scenario whose prompts are all `prompt_tokens` long."""
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "theory",
            "seed": seed,
            "experiment": {"kind": "steady", "queries": queries},
            "workload": {
                "strategy": strategy or {"name": "single"},
                "arrivals": arrivals,
                "prompt": {"distribution": "constant", "tokens": prompt_tokens},
                "output": output,
                "max_tokens": max_tokens,
            },
            "cluster": {"gpu": "none", "model": "none"},
        }
        | tables
    )


def run_world(
    world: Scenario,
    base_dir: Path,
    *,
    replication: int = 0,
    max_num_seqs: int = 1_000,
    **step_ns: float,
) -> Tables:
    """Simulate with an engine that has room for everybody; `step_ns` are the affine model's coefficients."""
    config = EngineConfig(
        num_gpu_blocks=2_000,
        block_size=1 << 20,  # blocks are of no interest here, and nothing happens when one fills up
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=10_000_000,
        max_model_len=1 << 40,
        enable_prefix_caching=False,
        async_scheduling=False,
        long_prefill_token_threshold=0,
    )
    deployment = SimpleNamespace(
        engine_config=config,
        step_model=AffineStepModel(**(step_ns or {"constant_ns": STEP_NS})),
        host=HostOverhead(),
        router="round_robin",
        replicas=1,
        pools={},
        acceptance=None,
    )
    streams = Streams(world.seed, replication)
    source = QuerySource(world.workload, streams, base_dir, queries=world.experiment.queries)
    arrivals = world.workload.arrivals
    times_ns = (
        None
        if arrivals.process == "closed_loop"
        else arrival_times_ns(arrivals, streams, world.experiment.queries, base_dir)
    )
    return simulate(world, cast(Deployment, deployment), source, times_ns).tables


def column(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column as an array."""
    return np.asarray(table.column(name).to_numpy())


def lengths_file(folder: Path, lengths: Sequence[int], problems: Sequence[int] | None = None) -> dict[str, Any]:
    """Write a table of lengths; the scenario's `output` that draws from it."""
    columns = {"tokens": pa.array(lengths, pa.int64())}
    output = {"distribution": "table", "file": "lengths.parquet", "column": "tokens"}
    if problems is not None:
        columns["problem"] = pa.array(problems, pa.int64())
        output["problem_column"] = "problem"
    pq.write_table(pa.table(columns), folder / "lengths.parquet")
    return output
