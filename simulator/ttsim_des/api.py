"""The Python interface: load a scenario, run it, read the result.

from ttsim_des import load, run

result = run(load("best-of-n", ["workload.strategy.samples=4"]))
print(result.summary["query"]["latency_s"]["p95"])
result.save("runs/four-samples")
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsim_des import assets
from ttsim_des.deployment import Deployment, deploy
from ttsim_des.latency.calibration import calibration_path
from ttsim_des.latency.profile import profile_directory
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.laws import check_laws
from ttsim_des.metrics.summary import summarise
from ttsim_des.records.long_table import whole
from ttsim_des.records.tables import Tables
from ttsim_des.report.manifest import make_manifest
from ttsim_des.report.rundir import write_run
from ttsim_des.rng import Streams
from ttsim_des.scenario.load import LoadedScenario, load_scenario
from ttsim_des.scenario.schema import OutcomeTokens, Scenario, TableTokens
from ttsim_des.simulation.run import simulate
from ttsim_des.workload.arrivals import arrival_times_ns
from ttsim_des.workload.columns import locate_file
from ttsim_des.workload.expected import check_limits, expected_work
from ttsim_des.workload.outcomes.load import outcome_file
from ttsim_des.workload.queries import QuerySource
from ttsim_des.workload.strategies.resolve import strategy_file

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """One finished run.

    `tables` are the records (Arrow), `queries` and `requests` the same as pandas frames, `summary` what summary.json
    holds. `simpy_events` says what the run cost.
    """

    loaded: LoadedScenario
    deployment: Deployment
    context: RunContext
    tables: Tables
    simpy_events: int
    wall_s: float
    started: str
    replication: int = 0

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Every metric, nested by subject; docs/metrics.md defines them."""
        return summarise(self.tables, self.context)

    @cached_property
    def queries(self) -> pd.DataFrame:
        """One row per query."""
        frame: pd.DataFrame = whole(self.tables.queries).to_pandas()
        return frame

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request."""
        frame: pd.DataFrame = whole(self.tables.requests).to_pandas()
        return frame

    def check_laws(self) -> list[str]:
        """The laws that this run breaks, as text; an empty list is a sound run."""
        return check_laws(self.tables, self.context)

    def save(self, out: str | Path, *, figures: bool = False) -> Path:
        """Write the run directory `out`, which must not exist, and return its path.

        With `figures` also draw them. Raises InputError when nothing can be written there.
        """
        scenario = self.loaded.scenario
        manifest = make_manifest(
            seed=scenario.seed,
            inputs=input_files(self.loaded),
            wall_s=self.wall_s,
            started=self.started,
            replication=self.replication,
        )
        path = write_run(
            Path(out),
            summary=self.summary,
            tables=self.tables,
            scenario_toml=self.loaded.to_toml(),
            manifest=manifest,
            steps=scenario.output.steps,
        )
        if figures:
            from ttsim_des.report.figures import draw

            try:
                draw(path / "figures", summary=self.summary, tables=self.tables.in_memory(), has_steps=True)
            except BaseException:  # also when interrupted: a run directory is there in full or not at all
                shutil.rmtree(path, ignore_errors=True)
                raise
        return path


def load(scenario: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> LoadedScenario:
    """A scenario file, or a bundled scenario by name, with `key=value` overrides applied.

    Raises InputError with every problem found.
    """
    return load_scenario(scenario, overrides, seed)


def run(scenario: LoadedScenario | str | Path, *, progress: Progress | None = None, replication: int = 0) -> Result:
    """Simulate a scenario; `progress(done, offered)` is called at every answered query.

    `replication`: which of the independent worlds of the scenario's seed.

    Raises InputError for a scenario that cannot be run, NotValidError when an invariant breaks.
    """
    started, clock_s = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    loaded = scenario if isinstance(scenario, LoadedScenario) else load(scenario)
    asked, base_dir = loaded.scenario, loaded.base_dir
    work = expected_work(asked, base_dir)
    check_limits(work, asked.limits)
    deployment = deploy(asked, base_dir)
    streams, queries = Streams(asked.seed, replication), asked.experiment.queries
    source = QuerySource(asked.workload, streams, base_dir, queries=queries)
    is_open = asked.workload.arrivals.process != "closed_loop"
    arrivals = arrival_times_ns(asked.workload.arrivals, streams, queries, base_dir) if is_open else None
    simulated = simulate(asked, deployment, source, arrivals, progress, base_dir, replication)
    return Result(
        loaded=loaded,
        deployment=deployment,
        context=run_context(asked, deployment, work.offered_queries_per_s),
        tables=simulated.tables,
        simpy_events=simulated.simpy_events,
        wall_s=time.perf_counter() - clock_s,
        started=started,
        replication=replication,
    )


def run_context(scenario: Scenario, deployment: Deployment, offered_rate_per_s: float | None) -> RunContext:
    """What the metrics are told of a run besides its records."""
    config, host, slo = deployment.engine_config, deployment.host, scenario.slo
    return RunContext(
        name=scenario.name,
        kind=scenario.experiment.kind,
        usable_blocks=deployment.usable_blocks,
        seed=scenario.seed,
        warmup_fraction=scenario.experiment.warmup_fraction,
        arrivals=scenario.workload.arrivals.process,
        offered_rate_per_s=offered_rate_per_s,
        strategy=scenario.workload.strategy.name,
        gpu=deployment.gpu,
        model=deployment.geometry.name,
        engine=deployment.engine,
        tp=deployment.tp,
        replicas=deployment.replicas,
        gpus=deployment.gpus,
        gpu_hour_usd=deployment.gpu_hour_usd,
        price_source=deployment.price_source,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        prefix_caching=config.enable_prefix_caching,
        async_scheduling=config.async_scheduling,
        num_speculative_tokens=config.speculation.num_speculative_tokens if config.speculation else 0,
        host_gap_bound_ns=host.schedule_ns(config.max_num_seqs) + host.update_ns(config.max_num_seqs),
        slo_query_latency_s=slo.query_latency_s,
        slo_ttft_s=slo.ttft_s,
        slo_tpot_s=slo.tpot_s,
        warnings=deployment.warnings,
        pools={name: run_context(scenario, pool, None) for name, pool in deployment.pools.items()},
    )


def input_files(loaded: LoadedScenario) -> dict[str, Path]:
    """Every file that a run reads, by what it is: for digests."""
    scenario, profiles = loaded.scenario, assets.root("profiles")
    cluster, workload = scenario.cluster, scenario.workload
    bundled_model = profiles / "models" / f"{cluster.model}.toml"
    inputs = {
        "engine": profiles / "engines" / f"{cluster.engine}.toml",
        "gpu": profile_directory(cluster.gpu, loaded.base_dir),
        "model": bundled_model if bundled_model.is_file() else loaded.base_dir / cluster.model,
        "prices": profiles / "prices.toml",
    }
    for name, tokens in (("prompt", workload.prompt), ("output", workload.output)):
        if isinstance(tokens, TableTokens):
            inputs[name] = locate_file(tokens.file, loaded.base_dir, f"workload.{name}.file")
        elif isinstance(tokens, OutcomeTokens):
            inputs[name] = outcome_file(tokens, loaded.base_dir, f"workload.{name}")
    if workload.arrivals.file is not None:
        inputs["trace"] = locate_file(workload.arrivals.file, loaded.base_dir, "workload.arrivals.file")
    for name, pool in scenario.pools.items():
        model = profiles / "models" / f"{pool.cluster.model}.toml"
        inputs[f"{name}.gpu"] = profile_directory(pool.cluster.gpu, loaded.base_dir)
        inputs[f"{name}.model"] = model if model.is_file() else loaded.base_dir / pool.cluster.model
        inputs[f"{name}.engine"] = profiles / "engines" / f"{pool.cluster.engine}.toml"
    strategy = workload.strategy
    if strategy.graph is not None:
        inputs["graph"] = loaded.base_dir / strategy.graph
    if (source := strategy_file(strategy.name, loaded.base_dir)) is not None:
        inputs["strategy"] = source
    if scenario.latency.calibration is not None:
        inputs["calibration"] = calibration_path(scenario.latency.calibration, loaded.base_dir)
    if loaded.path is not None:
        inputs["scenario"] = loaded.path
    return inputs
