"""The resolved settings of one engine, by vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ttsim_des.engine.speculation import SpeculationConfig


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All that the scheduler and the KV cache need to know; every value is final."""

    num_gpu_blocks: int
    """Blocks in the pool, the null block included: usable are `num_gpu_blocks - 1`."""
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131_072
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    async_scheduling: bool = True
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    long_prefill_token_threshold: int = 0
    scheduler_reserve_full_isl: bool = True
    watermark_blocks: int = 0
    free_unhashed_first: bool = True
    """Freed blocks that no hash names go to the front of the free queue (False: behind everything, as in vLLM 0.19)."""
    speculation: SpeculationConfig | None = None
