"""Speculative decoding of a scenario, resolved: what the scheduler counts, what drafting costs, what is accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.speculation import SpeculationConfig
from ttsim_des.errors import InputError, bad_input
from ttsim_des.latency.drafters import Drafter, Heads, Passes, SpeculativeStepModel, fusion_curves, head_geometry
from ttsim_des.latency.gemm import gemm_curve
from ttsim_des.latency.geometry import ModelGeometry, load_geometry
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.latency.shape import StepModel, StepShape
from ttsim_des.scenario.schema import AcceptanceTable, Cluster, Speculative
from ttsim_des.speculation.acceptance import (
    Acceptance,
    CopyingAcceptance,
    OracleDrafts,
    OutputAcceptance,
    PositionAcceptance,
    RecordedAcceptance,
)
from ttsim_des.speculation.steps import read_steps
from ttsim_des.units import us_to_ns
from ttsim_des.workload.columns import locate_file

KEY = "engine.speculative"


class MethodRules(NamedTuple):
    """What an engine assumes of a drafting method, and what it costs beside kernels where the scenario does not say.

    `has_kv`: it writes keys and values of its own, so blocks are reserved for its drafts. `draft_slots` as in
    `SpeculationConfig`. `layer_gap_us`: idle device time of a pass for each layer of the drafter, which is launched
    kernel by kernel. Sources: docs/speculation.md.
    """

    has_kv: bool
    draft_slots: int
    layer_gap_us: float
    host_step_us: float


METHODS = {
    "draft_model": MethodRules(has_kv=True, draft_slots=1, layer_gap_us=30.0, host_step_us=0.0),
    "eagle": MethodRules(has_kv=True, draft_slots=0, layer_gap_us=30.0, host_step_us=0.0),
    "eagle3": MethodRules(has_kv=True, draft_slots=0, layer_gap_us=30.0, host_step_us=0.0),
    "mtp": MethodRules(has_kv=True, draft_slots=0, layer_gap_us=30.0, host_step_us=0.0),
    "medusa": MethodRules(has_kv=False, draft_slots=0, layer_gap_us=30.0, host_step_us=0.0),
    "ngram": MethodRules(has_kv=False, draft_slots=0, layer_gap_us=0.0, host_step_us=45.0),
}


def may_schedule_ahead(asked: Speculative) -> bool:
    """Whether a step can be planned before the drafts for it are known: not where their number depends on the text."""
    return asked.method != "ngram" and asked.policy != "oracle"


def draft_geometry(asked: Speculative, target: ModelGeometry, base_dir: Path) -> ModelGeometry | None:
    """The drafter's network, for its memory and its passes; None where it has none of its own."""
    if asked.method == "draft_model":
        assert asked.model is not None
        try:
            return load_geometry(asked.model, base_dir)
        except InputError as error:
            raise InputError(replace(problem, key=f"{KEY}.model") for problem in error.problems) from None
    return head_geometry(target, asked.draft_vocab) if METHODS[asked.method].has_kv else None


def draft_tp(asked: Speculative, cluster: Cluster) -> int:
    """GPUs that share the drafter; InputError where the engine could not do that."""
    tp = asked.draft_tensor_parallel_size or cluster.tp
    if tp not in (1, cluster.tp):
        message = f"{tp} GPUs share the drafter, {cluster.tp} the target"
        raise bad_input(message, key=f"{KEY}.draft_tensor_parallel_size", expected="as many, or 1")
    return tp


def speculation_config(asked: Speculative) -> SpeculationConfig:
    """What the scheduler must know; an adaptive policy's table is still to be filled in."""
    rules, drafts = METHODS[asked.method], asked.num_speculative_tokens
    by_batch_size: tuple[tuple[int, int], ...] = ()
    table = asked.num_speculative_tokens_per_batch_size
    if table is not None:
        ends = [following[0] - 1 for following in table[1:]] + [table[-1][1]]
        by_batch_size = tuple((end, min(drafts, row[2])) for end, row in zip(ends, table, strict=True))
    return SpeculationConfig(drafts, drafts if rules.has_kv else 0, rules.draft_slots, by_batch_size)


def acceptance(asked: Speculative, base_dir: Path) -> Acceptance:
    """The acceptance process of a scenario; InputError where its file cannot be used."""
    most = len(asked.tree) if asked.tree is not None else asked.num_speculative_tokens
    process = _process(asked.acceptance, most, base_dir)
    return OracleDrafts(most, process) if asked.policy == "oracle" else process


def _process(table: AcceptanceTable, most: int, base_dir: Path) -> Acceptance:
    rates = tuple(table.rates or ())
    if table.process == "output":
        return OutputAcceptance(most, tuple(table.tokens or ()), rates)
    if table.process == "copying":
        assert table.enter is not None
        assert table.stay is not None
        assert table.offer is not None
        return CopyingAcceptance(most, table.enter, table.stay, table.offer)
    if table.process == "recorded":
        assert table.file is not None
        key = f"{KEY}.acceptance.file"
        return RecordedAcceptance(most, read_steps(locate_file(table.file, base_dir, key), key).by_stream())
    if table.rate is not None:
        rates = (table.rate,)
    return PositionAcceptance(most, rates, table.concentration)


def step_model(
    verifier: StepModel,
    asked: Speculative,
    profile: GpuProfile,
    target: ModelGeometry,
    drafter: ModelGeometry | None,
    cluster: Cluster,
    config: EngineConfig,
    kernel_scale: float,
) -> StepModel:
    """The verifying model's steps with the drafter's behind them; affine models have drafts in their coefficients."""
    if not isinstance(verifier, KernelStepModel) or asked.method == "ngram":
        return verifier
    tp, rules = draft_tp(asked, cluster), METHODS[asked.method]
    layers = 1 if drafter is None else drafter.layers
    gap_ns = us_to_ns(layers * rules.layer_gap_us if asked.draft_gap_us is None else asked.draft_gap_us)

    def network(geometry: ModelGeometry) -> KernelStepModel:
        return KernelStepModel(
            profile,
            geometry,
            tp,
            cluster.dtype,
            cluster.kv_dtype,
            max_context=config.max_model_len,
            unequal_contexts=False,
            kernel_scale=kernel_scale,
        )

    made: Drafter
    if drafter is None:
        block = gemm_curve(profile, cluster.dtype, target.hidden, target.hidden)
        made = Heads(network(head_geometry(target, None)), block, gap_ns)
    else:
        fusion = (
            () if asked.method == "draft_model" else fusion_curves(profile, cluster.dtype, target, asked.method, tp)
        )
        made = Passes(network(drafter), fusion, gap_ns, rules.draft_slots, tuple(asked.tree or ()))
    return SpeculativeStepModel(verifier, made)


def drafting_settings(asked: Speculative, config: EngineConfig) -> list[tuple[str, int | float | str, str]]:
    """Name, value and origin of what `check` tells of speculation."""
    assert config.speculation is not None
    rules, by_method, key = METHODS[asked.method], f"method {asked.method}", "speculative"
    rows: list[tuple[str, int | float | str, str]] = [
        (f"{key}.method", asked.method, "scenario"),
        (f"{key}.num_speculative_tokens", asked.num_speculative_tokens, "scenario"),
        (f"{key}.lookahead", config.speculation.num_lookahead_tokens, by_method),
        (f"{key}.draft_slots", config.speculation.draft_slots, by_method),
    ]
    if config.speculation.by_batch_size:
        told = ", ".join(f"{drafts} up to {most}" for most, drafts in config.speculation.by_batch_size)
        rows.append((f"{key}.drafts by batch", told, "best goodput" if asked.policy == "adaptive" else "scenario"))
    step_us = rules.host_step_us if asked.host_step_us is None else asked.host_step_us
    rows.append((f"{key}.host_step_us", step_us, by_method if asked.host_step_us is None else "scenario"))
    if asked.method != "ngram":
        gap = ("draft_gap_us", rules.layer_gap_us, f"{by_method}, a layer of the drafter and pass")
        rows.append((f"{key}.{gap[0]}", *(gap[1:] if asked.draft_gap_us is None else (asked.draft_gap_us, "scenario"))))
    return rows


def with_drafting(host: HostOverhead, asked: Speculative) -> HostOverhead:
    """Host time with that of the drafter, spent once a step's tokens are there."""
    step_us = METHODS[asked.method].host_step_us if asked.host_step_us is None else asked.host_step_us
    return host._replace(
        update_step_ns=host.update_step_ns + us_to_ns(step_us),
        update_sequence_ns=host.update_sequence_ns + us_to_ns(asked.host_sequence_us or 0.0),
    )


def adaptive_table(
    model: StepModel, host: HostOverhead, config: EngineConfig, process: Acceptance, mean_context: float
) -> tuple[tuple[int, int], ...]:
    """Drafts with the best expected goodput for batches of 1, 2, 4 ... sequences at a mean context.

    Goodput is expected tokens of a step over its time, as in SmartSpec (arXiv 2406.14066); equal goodput goes to fewer
    drafts. An entry holds up to halfway to the next size.
    """
    assert config.speculation is not None
    slots = 1 + config.speculation.draft_slots
    sizes = [1 << power for power in range(config.max_num_seqs.bit_length()) if 1 << power <= config.max_num_seqs]
    table: list[tuple[int, int]] = []
    for size in sizes:
        rates = {}
        for drafts in range(config.speculation.num_speculative_tokens + 1):
            if size * (drafts + slots) > config.max_num_batched_tokens:
                break
            context = max(1, round(mean_context)) + drafts
            shape = StepShape(size, size * context, context, (), size * (1 + drafts), size * drafts, drafts)
            device_ns, host_ns = model.step_ns(shape), host.schedule_ns(size) + host.update_ns(size)
            period_ns = max(device_ns, host_ns) if config.async_scheduling else device_ns + host_ns
            rates[drafts] = process.mean_tokens_per_step(drafts) / period_ns
        best = max(rates, key=lambda drafts: (rates[drafts], -drafts)) if rates else 0
        end = size + size // 2
        if table and table[-1][1] == best:
            table[-1] = (end, best)
        else:
            table.append((end, best))
    return tuple(table)
