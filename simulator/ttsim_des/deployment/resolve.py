"""A scenario's cluster and engine resolved to what is simulated: settings, memory, step model, host time, price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from ttsim_des.deployment.checks import LongestRequest, fit_problems, sharding_problems, warnings
from ttsim_des.deployment.prices import price
from ttsim_des.deployment.speculation import (
    acceptance,
    adaptive_table,
    draft_geometry,
    draft_tp,
    drafting_settings,
    may_schedule_ahead,
    speculation_config,
    with_drafting,
)
from ttsim_des.deployment.speculation import step_model as drafting_model
from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.engine_file import EngineFile, load_engine_file
from ttsim_des.engine.memory import MemoryDerivation, derive_blocks
from ttsim_des.engine.throughput import ThroughputBound, best_throughput, least_token_ns
from ttsim_des.errors import InputError, Problem, bad_input
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.calibration import UNFITTED, Calibration, calibration_path, read_calibration
from ttsim_des.latency.geometry import ModelGeometry, load_geometry
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import GpuProfile, load_profile
from ttsim_des.latency.shape import StepModel
from ttsim_des.router import Policy
from ttsim_des.scenario.schema import AffineLatency, Engine, Scenario, Speculative, Workload
from ttsim_des.speculation.acceptance import Acceptance
from ttsim_des.units import NS_PER_S, NS_PER_US, s_to_ns
from ttsim_des.workload.expected import ExpectedWork, expected_work

T = TypeVar("T")


class Setting(NamedTuple):
    """One engine setting as it was taken, and where it comes from."""

    name: str
    value: int | float | bool | str
    origin: str


@dataclass(frozen=True)
class Deployment:
    """Everything about the serving side that a simulation needs, final."""

    gpu: str
    device: str
    engine: str
    tp: int
    replicas: int
    geometry: ModelGeometry
    engine_config: EngineConfig
    host: HostOverhead
    host_source: str
    step_model: StepModel
    gpu_hour_usd: float | None
    price_source: str
    memory: MemoryDerivation
    settings: tuple[Setting, ...]
    profile_source: str
    warnings: tuple[str, ...]
    router: Policy = "round_robin"
    acceptance: Acceptance | None = None
    """With speculative decoding: what becomes of drafts."""
    pools: Mapping[str, Deployment] = field(default_factory=dict)
    """The pools beside the generator's, by name."""

    @property
    def gpus(self) -> int:
        """GPUs of this pool."""
        return self.tp * self.replicas

    @property
    def usable_blocks(self) -> int:
        """KV blocks of one replica that requests can hold."""
        return self.engine_config.num_gpu_blocks - 1

    def best_throughput(self, workload: Workload, work: ExpectedWork) -> ThroughputBound:
        """The most output tokens per second that the whole cluster can deliver for this workload; see `throughput`."""
        prompt_tokens = work.prompt_tokens_mean
        new_tokens = prompt_tokens
        if self.engine_config.enable_prefix_caching:
            own_tokens = max(0.0, prompt_tokens - workload.shared_prefix_tokens)
            new_tokens = max(1.0, own_tokens * work.queries / work.chains)
        one = best_throughput(
            self.step_model,
            self.engine_config,
            self.host,
            prompt_tokens=prompt_tokens,
            new_prompt_tokens=new_tokens,
            output_tokens=work.chain_tokens_mean,
            tokens_per_step=self._tokens_per_step,
        )
        return one._replace(output_tokens_per_s=one.output_tokens_per_s * self.replicas)

    def best_queries_per_s(self, workload: Workload, work: ExpectedWork) -> float:
        """That bound in queries."""
        return self.best_throughput(workload, work).output_tokens_per_s * work.queries / work.output_tokens

    def least_token_s(self) -> float:
        """No sequence gets its tokens faster than this, however little there is to do."""
        least_ns = least_token_ns(self.step_model, self.engine_config, self.host, self._tokens_per_step)
        return least_ns / NS_PER_S

    @property
    def _tokens_per_step(self) -> Callable[[int], float] | None:
        return None if self.acceptance is None else self.acceptance.mean_tokens_per_step


def deploy(scenario: Scenario, base_dir: Path, calibration: Calibration | None = None) -> Deployment:
    """Resolve the scenario's cluster and pools; files they name are relative to `base_dir`.

    `calibration` stands in for the file that the scenario may name.

    Raises InputError with every problem found, each with its scenario key.
    """
    problems: list[Problem] = []
    work = _attempt(lambda: expected_work(scenario, base_dir), problems)
    fitted = calibration or _attempt(lambda: _calibration(scenario, base_dir), problems)
    longest = None if work is None else LongestRequest.of(work, scenario.workload.max_tokens)
    generator = _attempt(lambda: _deploy(scenario, base_dir, fitted or UNFITTED, longest), problems)
    pools: dict[str, Deployment] = {}
    scored = None if longest is None else longest.scored(scenario.workload.strategy.score_tokens or 0)
    for name, pool in scenario.pools.items():
        asked = scenario.model_copy(update={"cluster": pool.cluster, "engine": pool.engine, "verifier": None})
        found: list[Problem] = []
        deployed = _attempt(partial(_deploy, asked, base_dir, fitted or UNFITTED, scored), found)
        problems += [_under(name, problem) for problem in found]
        if deployed is not None:
            pools[name] = deployed
    if problems or generator is None:
        raise InputError(problems)
    extra = tuple(f"pool {name}: {text}" for name, pool in pools.items() for text in pool.warnings)
    return replace(generator, pools=pools, warnings=(*generator.warnings, *extra))


def _under(pool: str, problem: Problem) -> Problem:
    """A problem of a pool's deployment, with the key that the scenario has for it."""
    of_pool = problem.key.startswith(("cluster.", "engine."))
    return replace(
        problem,
        message=problem.message if of_pool else f"for the {pool}: {problem.message}",
        key=f"{pool}.{problem.key}" if of_pool else problem.key,
    )


def _deploy(scenario: Scenario, base_dir: Path, calibration: Calibration, longest: LongestRequest | None) -> Deployment:
    """One pool: the cluster and engine of a scenario."""
    cluster = scenario.cluster
    problems: list[Problem] = []
    profile = _attempt(lambda: load_profile(cluster.gpu, base_dir), problems)
    geometry = _attempt(lambda: load_geometry(cluster.model, base_dir), problems)
    engine = _attempt(lambda: load_engine_file(cluster.engine), problems)
    if geometry is not None:
        problems += sharding_problems(geometry, cluster)
    if problems or profile is None or geometry is None or engine is None:
        raise InputError(problems)
    asked = scenario.engine.speculative if isinstance(scenario.engine, Engine) else None
    drafter = process = None
    if asked is not None:
        drafter = _attempt(lambda: draft_geometry(asked, geometry, base_dir), problems)
        process = _attempt(lambda: acceptance(asked, base_dir), problems)
        _attempt(lambda: draft_tp(asked, cluster), problems)
        if problems:
            raise InputError(problems)
    config, memory, settings = _engine_config(scenario, profile, geometry, engine, asked, drafter)
    if longest is not None:
        problems += fit_problems(scenario, config, memory, longest)
    step_model = _attempt(lambda: _step_model(scenario, profile, geometry, engine, config, calibration), problems)
    if problems or step_model is None:
        raise InputError(problems)
    host = _host(scenario, engine, calibration)
    if asked is not None:
        scale = calibration.kernel_scale
        step_model = drafting_model(step_model, asked, profile, geometry, drafter, cluster, config, scale)
        host = with_drafting(host, asked)
        if asked.policy == "adaptive" and process is not None and config.speculation is not None:
            table = adaptive_table(step_model, host, config, process, longest.mean_context if longest else 1024)
            config = replace(config, speculation=replace(config.speculation, by_batch_size=table))
        settings = (*settings, *(Setting(*row) for row in drafting_settings(asked, config)))
    usd, price_source = price(cluster)
    return Deployment(
        gpu=cluster.gpu,
        device=profile.meta.device,
        engine=engine.name,
        tp=cluster.tp,
        replicas=cluster.replicas,
        geometry=geometry,
        engine_config=config,
        host=host,
        host_source=_host_source(scenario, engine),
        step_model=step_model,
        gpu_hour_usd=usd,
        price_source=price_source,
        memory=memory,
        settings=settings,
        profile_source=profile.meta.source if scenario.latency.model == "kernels" else "scenario (latency.affine)",
        warnings=warnings(scenario, profile, geometry, memory),
        router=cluster.router,
        acceptance=process,
    )


def _attempt(load: Callable[[], T], problems: list[Problem]) -> T | None:
    """What `load` returns, or None with its problems added to `problems`."""
    try:
        return load()
    except InputError as error:
        problems += error.problems
        return None


def _engine_config(
    scenario: Scenario,
    profile: GpuProfile,
    geometry: ModelGeometry,
    engine: EngineFile,
    asked: Speculative | None,
    drafter: ModelGeometry | None,
) -> tuple[EngineConfig, MemoryDerivation, tuple[Setting, ...]]:
    """The scenario's engine table over the engine file's defaults, with the blocks that follow."""
    given, defaults = scenario.engine, engine.defaults
    limits = engine.batch_limits(profile.meta.device, profile.meta.memory_gib)
    settings: list[Setting] = []

    def take(name: str, fallback: T, origin: str) -> T:
        value: T | None = getattr(given, name)
        taken = fallback if value is None else value
        assert isinstance(taken, int | float | str)
        settings.append(Setting(name, taken, origin if value is None else "scenario"))
        return taken

    by_gpu = f"{engine.name} for {profile.meta.device}"
    by_file = engine.name
    max_model_len = take("max_model_len", geometry.max_position, "model")
    chunked = take("enable_chunked_prefill", defaults.enable_chunked_prefill, by_file)
    budget_default = limits.max_num_batched_tokens if chunked else max(limits.max_num_batched_tokens, max_model_len)
    budget = take("max_num_batched_tokens", budget_default, by_gpu)
    seqs = take("max_num_seqs", min(limits.max_num_seqs, budget), by_gpu)
    block_size = take("block_size", defaults.block_size, by_file)
    memory = derive_blocks(
        geometry,
        engine.memory,
        memory_gib=profile.meta.memory_gib,
        utilization=take("gpu_memory_utilization", defaults.gpu_memory_utilization, by_file),
        tp=scenario.cluster.tp,
        dtype=scenario.cluster.dtype,
        kv_dtype=scenario.cluster.kv_dtype,
        block_size=block_size,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        num_gpu_blocks=given.num_gpu_blocks,
        drafter=None if asked is None or drafter is None else (drafter, draft_tp(asked, scenario.cluster)),
    )
    blocks = take("num_gpu_blocks", memory.num_gpu_blocks, "derived from memory")
    config = EngineConfig(
        num_gpu_blocks=blocks,
        block_size=block_size,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        enable_prefix_caching=take("enable_prefix_caching", defaults.enable_prefix_caching, by_file),
        enable_chunked_prefill=chunked,
        async_scheduling=take(
            "async_scheduling",
            defaults.async_scheduling if asked is None else defaults.async_scheduling and may_schedule_ahead(asked),
            by_file if asked is None or may_schedule_ahead(asked) else "drafts depend on the text",
        ),
        scheduling_policy=take("scheduling_policy", defaults.scheduling_policy, by_file),
        long_prefill_token_threshold=take(
            "long_prefill_token_threshold", defaults.long_prefill_token_threshold, by_file
        ),
        scheduler_reserve_full_isl=take("scheduler_reserve_full_isl", defaults.scheduler_reserve_full_isl, by_file),
        watermark_blocks=int(take("watermark", defaults.watermark, by_file) * blocks),
        free_unhashed_first=engine.free_unhashed_first,
        speculation=None if asked is None else speculation_config(asked),
    )
    settings.append(Setting("free_unhashed_first", engine.free_unhashed_first, by_file))
    return config, memory, tuple(settings)


def _step_model(
    scenario: Scenario,
    profile: GpuProfile,
    geometry: ModelGeometry,
    engine: EngineFile,
    config: EngineConfig,
    calibration: Calibration,
) -> StepModel:
    """The step model that the scenario asks for."""
    cluster = scenario.cluster
    if scenario.latency.model == "affine":
        if scenario.latency.affine is None:
            raise bad_input("the affine model needs its coefficients", key="latency.affine", expected="a table")
        return affine_step_model(scenario.latency.affine)
    asked = scenario.latency.unequal_contexts
    return _kernel_step_model(
        profile,
        geometry,
        cluster.tp,
        cluster.dtype,
        cluster.kv_dtype,
        max_context=config.max_model_len,
        graph_tokens=min(engine.graph_tokens, 2 * config.max_num_seqs, config.max_num_batched_tokens),
        gap_ns=engine.step_gap_ns,
        unequal_contexts=profile.meta.kv_stream.is_measured if asked is None else asked,
        kernel_scale=calibration.kernel_scale,
        expert_parallel=cluster.expert_parallel,
    )


_kernel_step_model = lru_cache(maxsize=16)(KernelStepModel)
"""A model is what its arguments say (its own caches only remember), so runs of a process share it.

One that has met everything holds some 25 MB (an estimate); runs that share a model come close together.
"""


def affine_step_model(table: AffineLatency) -> AffineStepModel:
    """The affine step model of a scenario's latency.affine table."""
    return AffineStepModel(
        constant_ns=table.constant_us * NS_PER_US,
        per_token_ns=table.per_token_us * NS_PER_US,
        per_decode_seq_ns=table.per_decode_seq_us * NS_PER_US,
        per_decode_ctx_token_ns=table.per_decode_ctx_token_us * NS_PER_US,
        per_prefill_qk_pair_ns=table.per_prefill_qk_pair_us * NS_PER_US,
    )


def _calibration(scenario: Scenario, base_dir: Path) -> Calibration:
    """What the scenario's calibration file says; nothing where it names none."""
    name = scenario.latency.calibration
    return UNFITTED if name is None else read_calibration(calibration_path(name, base_dir))


def _host(scenario: Scenario, engine: EngineFile, calibration: Calibration) -> HostOverhead:
    """The engine file's host time, calibration and scenario over it; affine steps have theirs in the constant."""
    host = calibration.host(engine.host) if scenario.latency.model == "kernels" else HostOverhead()
    if scenario.frontend.ingest_s is not None:
        host = host._replace(request_ns=s_to_ns(scenario.frontend.ingest_s))
    return host


def _host_source(scenario: Scenario, engine: EngineFile) -> str:
    if scenario.latency.model != "kernels":
        return "none with latency.model = affine"
    fitted = scenario.latency.calibration
    return engine.host_source if fitted is None else f"calibration {fitted} over engine file {engine.name}"
