"""What can never run as asked, and what a reader of the results should know."""

from __future__ import annotations

from typing import NamedTuple

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.memory import MemoryDerivation
from ttsim_des.errors import Problem
from ttsim_des.latency.geometry import ModelGeometry
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.scenario.schema import Cluster, Scenario
from ttsim_des.workload.expected import ExpectedWork


class LongestRequest(NamedTuple):
    """The longest prompt that may come, the cap on its output, and the longest output that may come."""

    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    mean_context: float = 1024.0
    """Halfway through a mean output."""

    @classmethod
    def of(cls, work: ExpectedWork, max_tokens: int) -> LongestRequest:
        """What the generator sees."""
        context = work.prompt_tokens_mean + work.output_tokens_mean / 2
        return cls(work.prompt_tokens_max, max_tokens, -(-work.output_tokens_max // work.requests), context)

    def scored(self, score_tokens: int) -> LongestRequest:
        """What a verifier sees: the whole text and its instructions, to be read only."""
        return LongestRequest(self.prompt_tokens + self.output_tokens + score_tokens, 0, 0)


def sharding_problems(geometry: ModelGeometry, cluster: Cluster) -> list[Problem]:
    """What tensor parallelism cannot divide. The vocabulary is padded, KV heads replicate."""
    tp = cluster.tp
    found = []
    for what, count in (("query heads", geometry.heads), ("MLP columns", geometry.intermediate)):
        if count % tp:
            found.append(f"{count} {what}")
    if geometry.kv_heads % tp and tp % geometry.kv_heads:
        found.append(f"{geometry.kv_heads} KV heads")
    if not found:
        return []
    valid = [
        size
        for size in (1, 2, 4, 8, 16, 32, 64)
        if not (geometry.heads % size or geometry.intermediate % size)
        and not (geometry.kv_heads % size and size % geometry.kv_heads)
    ]
    message = f"{tp} GPUs cannot share the {' and '.join(found)} of {geometry.name} evenly"
    return [Problem(message, key="cluster.tp", expected=f"a divisor, such as {', '.join(map(str, valid))}")]


def fit_problems(
    scenario: Scenario, config: EngineConfig, memory: MemoryDerivation, longest: LongestRequest
) -> list[Problem]:
    """What can never run: a model without room for KV blocks, a request that no empty engine could hold."""
    given = scenario.engine
    if given.num_gpu_blocks is None and memory.fitting_blocks < 2:
        sizes = {row.name: row.value for row in memory.rows if row.unit == "GiB"}
        message = (
            f"{scenario.cluster.model} does not fit: {sizes['weights']:.1f} GiB of weights, "
            f"{sizes['activations']:.1f} of activations and {sizes['other']:.1f} of other memory leave "
            f"{sizes['left for KV blocks']:.1f} GiB for KV blocks"
        )
        return [Problem(message, key="cluster.tp", expected="more GPUs a replica, or a GPU with more memory")]
    problems = []
    if config.max_num_batched_tokens < config.max_num_seqs:
        key = "engine.max_num_seqs" if given.max_num_seqs is not None else "engine.max_num_batched_tokens"
        message = (
            f"max_num_batched_tokens = {config.max_num_batched_tokens} is below max_num_seqs = {config.max_num_seqs}"
        )
        problems.append(Problem(message, key=key, expected="a token for every sequence"))
    if not config.enable_chunked_prefill and config.max_num_batched_tokens < config.max_model_len:
        message = (
            f"max_num_batched_tokens = {config.max_num_batched_tokens} is below max_model_len = "
            f"{config.max_model_len}, and without chunked prefill a longer prompt could never be computed"
        )
        expected = "at least max_model_len, or enable_chunked_prefill = true"
        problems.append(Problem(message, key="engine.max_num_batched_tokens", expected=expected))
    longest_prompt, cap, longest_output, _ = longest
    if longest_prompt + cap > config.max_model_len:
        key = "workload.max_tokens" if given.max_model_len is None else "engine.max_model_len"
        message = (
            f"prompts of up to {longest_prompt} tokens and max_tokens = {cap} exceed "
            f"max_model_len = {config.max_model_len}, and the front end refuses such requests"
        )
        expected = f"max_model_len of at least {longest_prompt + cap}, a lower cap, or a lower workload.prompt.max"
        problems.append(Problem(message, key=key, expected=expected))
    # The last token of a request is never computed, so it needs no room.
    reach = longest_prompt + max(longest_output - 1, 0)
    if config.speculation is not None:  # its last step still drafts
        drafts = config.speculation.num_speculative_tokens
        reach = min(reach + 1 + 2 * drafts + config.speculation.num_lookahead_tokens, config.max_model_len)
    needed = -(-reach // config.block_size)
    if needed > config.num_gpu_blocks - 1:
        key = "cluster.gpu" if given.num_gpu_blocks is None else "engine.num_gpu_blocks"
        message = (
            f"a request of up to {longest_prompt + longest_output} tokens needs {needed} KV blocks, "
            f"but an empty engine has {config.num_gpu_blocks - 1}: it could never finish"
        )
        problems.append(Problem(message, key=key, expected=f"num_gpu_blocks of at least {needed + 1}"))
    return problems


def warnings(
    scenario: Scenario, profile: GpuProfile, geometry: ModelGeometry, memory: MemoryDerivation
) -> tuple[str, ...]:
    """What a reader of the results should know of how they came about."""
    found = []
    if scenario.engine.num_gpu_blocks is None:
        found.append(
            f"num_gpu_blocks = {memory.num_gpu_blocks} is derived from memory; a real engine's start-up log tells the "
            "true number, and latency under load depends on it"
        )
    elif memory.num_gpu_blocks > memory.fitting_blocks:
        found.append(f"num_gpu_blocks = {memory.num_gpu_blocks} is given, but only {memory.fitting_blocks} would fit")
    if scenario.latency.model == "kernels":
        columns = geometry.vocab_per_gpu(scenario.cluster.tp)
        measured = profile.values("gemm", "bf16", "n")
        if measured and columns > measured[-1]:
            found.append(
                f"lm_head has {columns} columns on a GPU, the largest measured product {measured[-1]}: its efficiency "
                "is extrapolated"
            )
    return tuple(found)
