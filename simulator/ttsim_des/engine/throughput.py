"""The best steady throughput that the step model allows, without simulating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from ttsim_des.engine.config import EngineConfig
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.shape import PrefillChunk, StepModel, StepShape
from ttsim_des.units import NS_PER_S

SMALL_BATCHES = (1, 2, 4, 8, 16)


class ThroughputBound(NamedTuple):
    """Output tokens per second of one replica that is always full, and the batch at which it reaches them."""

    output_tokens_per_s: float
    batch: int
    mean_context_tokens: float
    limited_by: Literal["max_num_seqs", "KV blocks", "step time"]
    """What keeps the batch from being larger still; `step time`: a larger one would be slower."""


def best_throughput(
    step_model: StepModel,
    config: EngineConfig,
    host: HostOverhead,
    *,
    prompt_tokens: float,
    new_prompt_tokens: float,
    output_tokens: float,
    tokens_per_step: Callable[[int], float] | None = None,
) -> ThroughputBound:
    """Best output tokens per second of one replica for requests of these mean lengths.

    `new_prompt_tokens` of the prompt are computed by each request, the rest comes from the prefix cache and is held
    once. `tokens_per_step(drafts)`: with speculation, what a sequence's step brings on average. All that is uncertain
    is taken at its best (equal lengths, no preemption, no waiting), so a load above this bound cannot be served.
    """
    context = prompt_tokens + output_tokens / 2
    held_tokens = max(1.0, new_prompt_tokens + output_tokens / 2)
    by_blocks = max(1, int((config.num_gpu_blocks - 1) * config.block_size / held_tokens))
    largest = min(config.max_num_seqs, by_blocks)
    sizes = {largest, *(1 << power for power in range(largest.bit_length() - 1))}
    rates = {
        batch: _tokens_per_s(
            step_model, config, host, batch, context, prompt_tokens, new_prompt_tokens, output_tokens, tokens_per_step
        )
        for batch in sizes
    }
    batch = max(rates, key=lambda size: (rates[size], -size))
    if batch < largest:
        return ThroughputBound(rates[batch], batch, context, "step time")
    return ThroughputBound(
        rates[batch], batch, context, "max_num_seqs" if batch == config.max_num_seqs else "KV blocks"
    )


def least_token_ns(
    step_model: StepModel,
    config: EngineConfig,
    host: HostOverhead,
    tokens_per_step: Callable[[int], float] | None = None,
) -> float:
    """The least time between two tokens of a sequence: small batches without contexts.

    Not of one sequence alone, since some measured kernels are faster with a few rows than with one.
    """
    times_ns = []
    for seqs in (size for size in SMALL_BATCHES if size <= config.max_num_seqs):
        host_ns = host.schedule_ns(seqs) + host.update_ns(seqs)
        most = 0 if config.speculation is None else config.speculation.num_speculative_tokens
        for drafts in range(most + 1):
            contexts = seqs * (1 + drafts)
            shape = StepShape(seqs, contexts, 1 + drafts, (), contexts, seqs * drafts, drafts)
            device_ns = step_model.step_ns(shape)
            period_ns = max(device_ns, host_ns) if config.async_scheduling else device_ns + host_ns
            times_ns.append(period_ns / (1.0 if tokens_per_step is None else tokens_per_step(drafts)))
    return min(times_ns)


def _tokens_per_s(
    step_model: StepModel,
    config: EngineConfig,
    host: HostOverhead,
    batch: int,
    context: float,
    prompt_tokens: float,
    new_prompt_tokens: float,
    output_tokens: float,
    tokens_per_step: Callable[[int], float] | None,
) -> float:
    """A request costs its share of output - 1 decode steps, and what its prompt adds to the steps it is computed in."""
    ctx_max = max(1, round(context))
    drafts, per_step = 0, 1.0
    if config.speculation is not None and tokens_per_step is not None:
        drafts = config.speculation.num_drafts_after(batch)
        per_step, ctx_max = tokens_per_step(drafts), ctx_max + drafts
    decode = StepShape(batch, batch * ctx_max, ctx_max, (), batch * (1 + drafts), batch * drafts, drafts)
    decode_ns = step_model.step_ns(decode)
    host_ns = host.schedule_ns(batch) + host.update_ns(batch)
    period_ns = max(decode_ns, host_ns) if config.async_scheduling else decode_ns + host_ns
    new = max(1, round(new_prompt_tokens))
    chunk = PrefillChunk(
        min(new, max(1, config.max_num_batched_tokens - batch)), max(0, round(prompt_tokens - new_prompt_tokens))
    )
    mixed_ns = step_model.step_ns(decode._replace(prefill_chunks=(chunk,), logits_rows=decode.logits_rows + 1))
    prompt_ns = max(0, mixed_ns - decode_ns) * new / chunk.new
    return NS_PER_S * output_tokens / (max(0.0, output_tokens - 1) / per_step * period_ns / batch + max(1.0, prompt_ns))
