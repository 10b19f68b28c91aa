"""The step model composed from measured kernels.

A step runs, per layer: norm, qkv product, rotary embedding (with the norms of queries and keys where a model has them),
attention, output product, all-reduce, norm, gate-up product, activation, down product (or router and experts),
all-reduce; around the layers the embedding (and an all-reduce), the final norm, lm_head and the sampler for the rows
that are sampled. Products run once for all tokens of the step, so a mixed step reads the weights once. docs/latency.md
has every rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ttsim_des.latency.attention import MAX_CACHED, DecodeAttention, PrefillAttention, pieces, windowed
from ttsim_des.latency.collective import AllReduce
from ttsim_des.latency.experts import experts_curve
from ttsim_des.latency.gemm import gemm_curve
from ttsim_des.latency.geometry import ModelGeometry
from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.knots import KnotRow
from ttsim_des.latency.many_steps import ComingSteps, Times
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.latency.shape import PrefillChunk, Run, StepShape
from ttsim_des.latency.unequal import UnequalContexts
from ttsim_des.tuples import new_tuple
from ttsim_des.units import NS_PER_US

ACTIVATION_BYTES = 2
"""Activations are bf16, whatever the weights are."""
SAMPLER_BYTES_PER_LOGIT = 10
"""Read in bf16, written as float32, read again to choose a token."""
SAMPLER_LAUNCHES = 2
QUERY_TILE = 64
"""Rows of queries per tile of FlashAttention's packed grouped-query kernels; a single decode token fills a few."""
IntArray = NDArray[np.int64]


class KernelStepModel:
    """Time of a step on one replica; see the module. Implements `StepModel`."""

    def __init__(
        self,
        profile: GpuProfile,
        geometry: ModelGeometry,
        tp: int,
        dtype: str = "bf16",
        kv_dtype: str = "bf16",
        *,
        max_context: int,
        graph_tokens: int = 512,
        gap_ns: int = 0,
        unequal_contexts: bool = True,
        kernel_scale: float = 1.0,
        expert_parallel: bool = False,
    ) -> None:
        """`graph_tokens`: the largest step that runs in CUDA graphs. `gap_ns`: idle device time added to every step.

        `unequal_contexts`: whether the longest context of a batch counts, not only the mean. `kernel_scale` multiplies
        the time of every kernel. `expert_parallel`: the GPUs share whole experts instead of slices of each.

        Raises InputError when the profile cannot serve this geometry, dtype or number of GPUs.
        """
        self._meta = profile.meta
        self._geometry = geometry
        self._gap_ns = gap_ns
        self._ns_per_us = kernel_scale * NS_PER_US
        self._max_context = max_context
        heads, kv_heads = geometry.heads_per_gpu(tp), geometry.kv_heads_per_gpu(tp)
        self._group = -(-heads // kv_heads)
        queries = heads * geometry.head_dim
        keys = kv_heads * geometry.head_dim
        self._rotated = queries + keys
        self._intermediate = -(-geometry.intermediate // tp)
        hidden = geometry.hidden
        self._products = [
            gemm_curve(profile, dtype, queries + 2 * keys, hidden),
            gemm_curve(profile, dtype, hidden, queries),
        ]
        self._experts: Curve | None = None
        if geometry.experts:
            self._products.append(gemm_curve(profile, "bf16", geometry.experts, hidden))
            self._experts = experts_curve(profile, geometry, dtype, tp, expert_parallel=expert_parallel)
        else:
            self._products += [
                gemm_curve(profile, dtype, 2 * self._intermediate, hidden),
                gemm_curve(profile, dtype, hidden, self._intermediate),
            ]
        self._lm_head = gemm_curve(profile, "bf16", geometry.vocab_per_gpu(tp), hidden)
        kv_bytes = geometry.kv_bytes_per_layer(kv_dtype, tp)
        self._full_layers = geometry.layers - geometry.window_layers
        self._decode = DecodeAttention(profile, heads, kv_heads, geometry.head_dim, kv_dtype)
        self._prefill = PrefillAttention(profile, heads, kv_heads, geometry.head_dim, kv_dtype, kv_bytes)
        self._all_reduce = AllReduce(profile, tp, graph_tokens)
        self.graph_tokens = graph_tokens if tp > 1 else 0
        """Steps of more tokens run another all-reduce; 0 where there is none."""
        measured = [curve.x[-1] for curve in (*self._products, self._experts) if curve is not None]
        self._max_tokens = min(self._reduce_limit(), *measured)
        self._unequal = UnequalContexts(profile.meta.kv_stream, kv_heads, kv_bytes, self._ns_per_us * self._full_layers)
        self._unequal_from: float = self._unequal.min_seqs if unequal_contexts else float("inf")
        self._launch_ns = round(self._prefill.launch_us * geometry.layers * self._ns_per_us)
        self._prefill_cache_ns: dict[tuple[PrefillChunk, ...], int] = {}
        self._rows: dict[int, KnotRow] = {}
        self._curves: dict[int, Curve] = {}
        self._body_cache_ns: dict[int, int] = {}
        self._head_cache_ns: dict[int, int] = {0: 0}

    def step_ns(self, shape: StepShape) -> int:
        """Device time of one step; see `StepModel.step_ns`."""
        seqs, ctx_sum, ctx_max, chunks, logits_rows, draft_tokens, _ = shape
        decode_ns = self._decode_ns(seqs, ctx_sum, ctx_max) if seqs else 0
        if not chunks and not draft_tokens:
            return decode_ns
        tokens = seqs + draft_tokens
        for new, _ in chunks:
            tokens += new
        total_ns = self.dense_ns(tokens, logits_rows)
        if seqs:
            total_ns += (decode_ns - self.dense_ns(seqs, seqs)) * self.tiles(seqs, draft_tokens)
        if chunks:
            total_ns += self._prefill_ns(chunks)
            if seqs:
                total_ns -= self._launch_ns  # Decodes and chunks share one launch.
        return max(1, total_ns)

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """The longest linear run of decode steps; see `StepModel.decode_run`."""
        seqs, ctx_sum, ctx_max, _, _, _, _ = shape
        row = self._rows.get(seqs) or self._row(seqs)
        steps, first_ns, slope_ns, in_domain = row.line(ctx_sum, max_steps)
        if seqs >= self._unequal_from:
            mean = ctx_sum // seqs
            distance = ctx_max - mean
            if distance > 0:
                extra_ns, more_ns, holds = self._unequal.line(seqs, self._curves[seqs], mean, distance)
                first_ns += extra_ns
                slope_ns += more_ns
                if holds < steps:
                    steps = holds
        return new_tuple(Run, (steps, first_ns, slope_ns, in_domain))

    def draft_steps(self, shape: StepShape, steps: ComingSteps) -> Times:
        """Many steps of a batch that drafts; see `ManyStepsModel`."""
        seqs, drafts, max_tokens = shape.decode_seqs, steps.drafts, self._max_tokens
        max_ctx_sum = (self._rows.get(seqs) or self._row(seqs)).max_ctx_sum
        if drafts >= 0:
            tiles, flat_ns = self.tiles(seqs, drafts), self.dense_ns(seqs + drafts, seqs + drafts)
            times_ns = self.attention_ns(seqs, steps, tiles, flat_ns)
            if seqs + drafts > max_tokens:
                return times_ns, False
            return times_ns, True if steps.high <= max_ctx_sum else steps.ctx_sums <= max_ctx_sum
        numbers = steps.draft_tokens.tolist()
        each = {number: (self.tiles(seqs, number), self.dense_ns(seqs + number, seqs + number)) for number in numbers}
        times_ns = self.attention_ns(seqs, steps, 1, 0)
        times_ns *= np.array([each[number][0] for number in numbers], dtype=np.int64)
        times_ns += np.array([each[number][1] for number in numbers], dtype=np.int64)
        return times_ns, (steps.ctx_sums <= max_ctx_sum) & (steps.draft_tokens + seqs <= max_tokens)

    def attention_ns(self, seqs: int, steps: ComingSteps, tiles: int, flat_ns: int) -> IntArray:
        """Attention of many steps of `seqs` sequences, `tiles` times, and `flat_ns` in each."""
        row = self._rows.get(seqs) or self._row(seqs)
        is_simple = tiles == 1
        more_ns = -self.dense_ns(seqs, seqs)
        attention_ns = row.steps_ns(steps.ctx_sums, steps.low, steps.high, more_ns + flat_ns if is_simple else more_ns)
        if seqs >= self._unequal_from:
            means, curve, line = steps.ctx_sums // seqs, self._curves[seqs], self._unequal.line
            distances = (steps.ctx_maxs - means).tolist()
            attention_ns += np.array(
                [
                    line(seqs, curve, mean, distance)[0] if distance > 0 else 0
                    for mean, distance in zip(means.tolist(), distances, strict=True)
                ],
                dtype=np.int64,
            )
        if not is_simple:
            attention_ns *= tiles
            attention_ns += flat_ns
        return attention_ns

    def tiles(self, seqs: int, draft_tokens: int) -> int:
        """How often the keys and values pass by when each sequence has queries for itself and its drafts.

        Queries of all heads that share a KV head are computed in tiles of `QUERY_TILE` rows.
        """
        queries = 1 + -(-draft_tokens // seqs)
        return -(-queries * self._group // QUERY_TILE)

    def in_domain(self, shape: StepShape) -> bool:
        """Whether tokens, batch, contexts and chunks were all measured. Sizes of the weights are not looked at."""
        seqs, ctx_sum, _, chunks, _, draft_tokens, _ = shape
        if seqs and ctx_sum > (self._rows.get(seqs) or self._row(seqs)).max_ctx_sum:
            return False
        tokens, longest = seqs + draft_tokens, self._prefill.max_query
        for new, computed in chunks:
            tokens += new
            if new + computed > longest:
                return False
        return tokens <= self._max_tokens

    def _row(self, seqs: int) -> KnotRow:
        """Build and keep the row of a batch size."""
        fixed_ns = self.dense_ns(seqs, seqs)
        ns_per_layer_us = self._geometry.layers * self._ns_per_us
        curve = self._curves[seqs] = self._decode.curve(seqs)
        if self._geometry.window:
            curve = windowed(curve, self._geometry.window, self._geometry.window_layers / self._geometry.layers)
        measured = int(self._decode.max_context(seqs) * seqs) if seqs <= self._max_tokens else 0
        row = KnotRow(seqs, fixed_ns, curve, ns_per_layer_us, self._max_context, measured)
        self._rows[seqs] = row
        return row

    def _decode_ns(self, seqs: int, ctx_sum: int, ctx_max: int) -> int:
        """A step of these decodes alone."""
        step_ns = (self._rows.get(seqs) or self._row(seqs)).step_ns(ctx_sum)
        if seqs >= self._unequal_from:
            mean = ctx_sum // seqs
            distance = ctx_max - mean
            if distance > 0:
                step_ns += self._unequal.line(seqs, self._curves[seqs], mean, distance)[0]
        return step_ns

    def _prefill_ns(self, chunks: tuple[PrefillChunk, ...]) -> int:
        """Attention of the chunks, in all layers."""
        attention_ns = self._prefill_cache_ns.get(chunks)
        if attention_ns is None:
            if len(self._prefill_cache_ns) >= MAX_CACHED:
                self._prefill_cache_ns.clear()
            attention_us = self._prefill.us(chunks) * self._full_layers
            if window := self._geometry.window:
                attention_us += self._prefill.us(pieces(chunks, window)) * self._geometry.window_layers
            attention_ns = round(attention_us * self._ns_per_us)
            self._prefill_cache_ns[chunks] = attention_ns
        return attention_ns

    def dense_ns(self, tokens: int, logits_rows: int) -> int:
        """Everything but attention, in a step of `tokens` tokens of which `logits_rows` are sampled."""
        body_ns = self._body_cache_ns.get(tokens)
        if body_ns is None:
            body_ns = self._body_cache_ns[tokens] = round(self._body_us(tokens) * self._ns_per_us) + self._gap_ns
        head_ns = self._head_cache_ns.get(logits_rows)
        if head_ns is None:
            head_ns = self._head_cache_ns[logits_rows] = round(self._head_us(logits_rows) * self._ns_per_us)
        return body_ns + head_ns

    def _body_us(self, tokens: int) -> float:
        """Embedding, layers without attention, final norm."""
        geometry = self._geometry
        hidden = tokens * geometry.hidden * ACTIVATION_BYTES
        reduce_us = self._all_reduce.us(tokens, hidden)
        norm_us = self._elementwise_us(4 * hidden)  # Input and residual, each read and written.
        passes = 2 if geometry.qk_norm else 1
        rotary_us = self._moved_us(2 * passes * tokens * self._rotated * ACTIVATION_BYTES)
        if self._experts is None:
            activation_us = self._elementwise_us(3 * tokens * self._intermediate * ACTIVATION_BYTES)
        else:  # choosing the experts (logits read, as many weights and numbers written), and the experts themselves
            activation_us = self._elementwise_us(2 * tokens * geometry.experts * ACTIVATION_BYTES)
            activation_us += self._experts.at(tokens)
        products_us = sum(curve.at(tokens) for curve in self._products)
        layer_us = products_us + 2 * norm_us + rotary_us + activation_us + 2 * reduce_us
        return geometry.layers * layer_us + self._elementwise_us(2 * hidden) + norm_us + reduce_us

    def _head_us(self, rows: int) -> float:
        """lm_head, the logits brought together, and the sampler."""
        geometry = self._geometry
        logits = rows * geometry.vocab
        sampler_us = self._moved_us(logits * SAMPLER_BYTES_PER_LOGIT)
        sampler_us += SAMPLER_LAUNCHES * self._meta.elementwise_launch_us
        return self._lm_head.at(rows) + self._all_reduce.gather_us(rows, logits * ACTIVATION_BYTES) + sampler_us

    def _elementwise_us(self, moved_bytes: float) -> float:
        return self._moved_us(moved_bytes) + self._meta.elementwise_launch_us

    def _moved_us(self, moved_bytes: float) -> float:
        meta = self._meta
        return 1e6 * moved_bytes / (meta.elementwise_bandwidth_share * meta.bandwidth_bytes_per_s)

    def _reduce_limit(self) -> float:
        return self._all_reduce.max_bytes / (self._geometry.hidden * ACTIVATION_BYTES)
