"""What metrics know of a run beside its record tables: plain numbers, no live objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """One run as its deployment and scenario describe it.

    `gpus` is the whole deployment (tp x replicas). `usable_blocks` is the number of KV blocks of one replica that
    requests can hold (the null block excluded). `host_gap_bound_ns` is the longest time that the host may put between
    two steps while there is work (schedule and update of a full batch); None where nobody knows.
    `warnings` of the deployment (extrapolated profile, derived memory ...) are passed on to the summary.
    """

    name: str
    kind: Literal["steady", "terminating"]
    usable_blocks: int
    seed: int = 0
    warmup_fraction: float = 0.1
    arrivals: str = "poisson"
    offered_rate_per_s: float | None = None
    strategy: str = ""
    gpu: str = ""
    model: str = ""
    engine: str = ""
    tp: int = 1
    replicas: int = 1
    gpus: int = 1
    gpu_hour_usd: float | None = None
    price_source: str = ""
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131_072
    prefix_caching: bool = True
    async_scheduling: bool = True
    num_speculative_tokens: int = 0
    host_gap_bound_ns: int | None = None
    slo_query_latency_s: float | None = None
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    warnings: tuple[str, ...] = ()
    pools: Mapping[str, RunContext] = field(default_factory=dict)
    """The pools beside the generator's."""

    @property
    def fleet_gpus(self) -> int:
        """GPUs of all pools."""
        return self.gpus + sum(pool.gpus for pool in self.pools.values())

    @property
    def fleet_hour_usd(self) -> float | None:
        """An hour of all GPUs of all pools; None where the price of one is unknown."""
        total = 0.0
        for pool in (self, *self.pools.values()):
            if pool.gpu_hour_usd is None:
                return None
            total += pool.gpus * pool.gpu_hour_usd
        return total
