"""How many KV blocks fit into a GPU's memory, and how that number comes about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ttsim_des.latency.geometry import ModelGeometry
from ttsim_des.units import GIB

_MIB = 1 << 20
_ACTIVATION_BYTES = 2


class MemoryRow(NamedTuple):
    """One line of the derivation: `value` in `unit`, and where it comes from."""

    name: str
    value: float
    unit: str
    note: str


@dataclass(frozen=True, slots=True)
class MemoryRules:
    """Coefficients of the engine file's [memory] table; see docs/latency.md."""

    activation_intermediates: float
    activation_hiddens: float
    sampler_bytes_per_logit: float
    other_gib: float
    other_tp_gib: float
    graph_mib_per_layer: float
    graphs_counted: bool


@dataclass(frozen=True, slots=True)
class MemoryDerivation:
    """KV blocks of one replica and the rows that lead to them."""

    num_gpu_blocks: int
    fitting_blocks: int
    """Blocks that fit by this derivation; equal to `num_gpu_blocks` unless the scenario sets that."""
    rows: tuple[MemoryRow, ...]

    def explained(self, engine: str) -> str:
        """The derivation in one line, for a reader who did not ask for the number."""
        parts = ", ".join(f"{row.name} {row.value:.4g} {row.unit}".rstrip() for row in self.rows[:-2])
        return f"{self.num_gpu_blocks}: not recorded; memory rules of {engine}: {parts}"


def derive_blocks(
    geometry: ModelGeometry,
    rules: MemoryRules,
    *,
    memory_gib: float,
    utilization: float,
    tp: int,
    dtype: str,
    kv_dtype: str,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    num_gpu_blocks: int | None,
    drafter: tuple[ModelGeometry, int] | None = None,
) -> MemoryDerivation:
    """Blocks per replica: those given, or as many as fit (possibly none, which is the caller's error to report).

    `drafter`: the network that drafts and over how many GPUs it is spread; its keys and values lie in the same blocks.
    All sizes are per GPU; a block spreads over the group, so the number of blocks is that of one GPU.
    """
    usable = memory_gib * GIB * utilization
    weights = geometry.weight_bytes(dtype, tp)
    token_bytes = geometry.kv_bytes_per_token(kv_dtype, tp)
    with_drafter = ""
    if drafter is not None:
        weights += drafter[0].weight_bytes(dtype, drafter[1])
        token_bytes += drafter[0].kv_bytes_per_token(kv_dtype, drafter[1])
        with_drafter = ", drafter included"
    per_token = rules.activation_intermediates * geometry.intermediate / tp + rules.activation_hiddens * geometry.hidden
    model = max_num_batched_tokens * per_token * _ACTIVATION_BYTES
    sampler = max_num_seqs * geometry.vocab * rules.sampler_bytes_per_logit
    activations = max(model, sampler)
    other = (rules.other_gib if tp == 1 else rules.other_tp_gib) * GIB
    graphs = rules.graph_mib_per_layer * geometry.layers * _MIB
    left = usable - weights - activations - other - (graphs if rules.graphs_counted else 0)
    block = token_bytes * block_size
    fitting = max(0, int(left // block))
    blocks = fitting if num_gpu_blocks is None else num_gpu_blocks
    counted = "" if rules.graphs_counted else " (not counted by this version)"
    larger = "layers" if model >= sampler else "sampler"
    rows = (
        MemoryRow("GPU memory", memory_gib, "GiB", "as the driver reports it"),
        MemoryRow("gpu_memory_utilization", utilization, "", f"{usable / GIB:.2f} GiB for the engine"),
        MemoryRow("weights", weights / GIB, "GiB", f"{dtype}, on each of {tp} GPU(s){with_drafter}"),
        MemoryRow("activations", activations / GIB, "GiB", f"largest step: {max_num_batched_tokens} tokens ({larger})"),
        MemoryRow("other", other / GIB, "GiB", "CUDA context" + (", communication buffers" if tp > 1 else "")),
        MemoryRow("CUDA graphs", graphs / GIB, "GiB", f"{geometry.layers} layers{counted}"),
        MemoryRow("left for KV blocks", left / GIB, "GiB", ""),
        MemoryRow("KV bytes a block", block, "B", f"{block_size} tokens, {kv_dtype}{with_drafter}"),
        MemoryRow(
            "num_gpu_blocks", blocks, "blocks", "derived" if num_gpu_blocks is None else f"given; {fitting} would fit"
        ),
        MemoryRow("KV cache", blocks * block / GIB, "GiB", f"{blocks * block_size} tokens"),
    )
    return MemoryDerivation(blocks, fitting, rows)
