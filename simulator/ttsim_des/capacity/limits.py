"""Limits of the engine's batches, and whether they ever mattered to a run."""

from __future__ import annotations

from dataclasses import dataclass

from ttsim_des.deployment import Deployment
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.metrics.flat import Flat
from ttsim_des.scenario.schema import Scenario
from ttsim_des.scenario.toml_writer import to_toml

MOST_HELD = 0.8
"""Of the KV blocks: with fewer held, a few blocks more or less change nothing but what is evicted."""
LIMIT_KEYS = ("max_num_seqs", "max_num_batched_tokens")


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the engine's batches may get, and all else that a run depends on."""

    max_num_seqs: int
    max_num_batched_tokens: int
    graph_tokens: int
    family: str

    def matter_to(self, run: Flat, other: Limits) -> bool:
        """Whether a run under the other limits could have been another one under these: a limit that differs was met.

        Larger batches also leave fewer KV blocks, so these must have been plenty.
        """
        running, tokens, held = run["batch.peak_running"], run["batch.peak_tokens"], run["kv.peak_held_share"]
        if running is None or tokens is None or held is None:
            return True
        return (
            (self.max_num_seqs != other.max_num_seqs and running >= min(self.max_num_seqs, other.max_num_seqs))
            or (
                self.max_num_batched_tokens != other.max_num_batched_tokens
                and tokens >= min(self.max_num_batched_tokens, other.max_num_batched_tokens)
            )
            or (self.graph_tokens != other.graph_tokens and tokens > min(self.graph_tokens, other.graph_tokens))
            or held > MOST_HELD
            or run["preemption.count"] != 0
        )


def limits_of(scenario: Scenario, deployment: Deployment) -> Limits | None:
    """None with drafts, whose number may depend on them, and where prompts must fit into a step whole."""
    config = deployment.engine_config
    if config.speculation is not None or not config.enable_chunked_prefill:
        return None
    family = scenario.model_dump(by_alias=True, exclude_none=True)
    for key in LIMIT_KEYS:
        family["engine"].pop(key, None)
    graph_tokens = deployment.step_model.graph_tokens if isinstance(deployment.step_model, KernelStepModel) else 0
    return Limits(config.max_num_seqs, config.max_num_batched_tokens, graph_tokens, to_toml(family))
