"""The step model composed from measured kernels.

A step runs, per layer: norm, qkv product, rotary embedding (with the norms of queries and keys where a model has them),
attention, output product, all-reduce, norm, gate-up product, activation, down product, all-reduce; around the layers
the embedding (and an all-reduce), the final norm, lm_head and the sampler for the rows that are sampled. Products run
once for all tokens of the step, so a mixed step reads the weights once. docs/latency.md has every rule.
"""

from __future__ import annotations

from ttsim_des.latency.attention import MAX_CACHED, DecodeAttention, PrefillAttention
from ttsim_des.latency.collective import AllReduce
from ttsim_des.latency.gemm import gemm_curve
from ttsim_des.latency.geometry import ModelGeometry
from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.knots import KnotRow
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.latency.shape import PrefillChunk, Run, StepShape
from ttsim_des.latency.unequal import UnequalContexts
from ttsim_des.units import NS_PER_US

ACTIVATION_BYTES = 2
"""Activations are bf16, whatever the weights are."""
SAMPLER_BYTES_PER_LOGIT = 10
"""Read in bf16, written as float32, read again to choose a token."""
SAMPLER_LAUNCHES = 2


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
    ) -> None:
        """`graph_tokens`: the largest step that runs in CUDA graphs. `gap_ns`: idle device time added to every step.

        `unequal_contexts`: whether the longest context of a batch counts, not only the mean.

        Raises InputError when the profile cannot serve this geometry, dtype or number of GPUs.
        """
        self._meta = profile.meta
        self._geometry = geometry
        self._gap_ns = gap_ns
        self._max_context = max_context
        heads, kv_heads = geometry.heads_per_gpu(tp), geometry.kv_heads_per_gpu(tp)
        queries = heads * geometry.head_dim
        keys = kv_heads * geometry.head_dim
        self._rotated = queries + keys
        self._intermediate = -(-geometry.intermediate // tp)
        hidden = geometry.hidden
        self._products = [
            gemm_curve(profile, dtype, queries + 2 * keys, hidden),
            gemm_curve(profile, dtype, hidden, queries),
            gemm_curve(profile, dtype, 2 * self._intermediate, hidden),
            gemm_curve(profile, dtype, hidden, self._intermediate),
        ]
        self._lm_head = gemm_curve(profile, "bf16", geometry.vocab_per_gpu(tp), hidden)
        kv_bytes = geometry.kv_bytes_per_token(kv_dtype, tp) / geometry.layers
        self._decode = DecodeAttention(profile, heads, kv_heads, geometry.head_dim, kv_dtype)
        self._prefill = PrefillAttention(profile, heads, kv_heads, geometry.head_dim, kv_dtype, kv_bytes)
        self._all_reduce = AllReduce(profile, tp, graph_tokens)
        self._max_tokens = min(self._reduce_limit(), *(curve.x[-1] for curve in self._products))
        self._unequal = UnequalContexts(profile.meta.kv_stream, kv_heads, kv_bytes, geometry.layers)
        self._unequal_from: float = self._unequal.min_seqs if unequal_contexts else float("inf")
        self._launch_ns = round(self._prefill.launch_us * geometry.layers * NS_PER_US)
        self._prefill_cache_ns: dict[tuple[PrefillChunk, ...], int] = {}
        self._rows: dict[int, KnotRow] = {}
        self._curves: dict[int, Curve] = {}
        self._body_cache_ns: dict[int, int] = {}
        self._head_cache_ns: dict[int, int] = {0: 0}
        self._context_limits: dict[int, float] = {}

    def step_ns(self, shape: StepShape) -> int:
        """Device time of one step; see `StepModel.step_ns`."""
        seqs, ctx_sum, ctx_max, chunks, logits_rows, drafts = shape
        decode_ns = self._decode_ns(seqs, ctx_sum, ctx_max) if seqs else 0
        if not chunks and not drafts:
            return decode_ns
        tokens = seqs * (1 + drafts)
        for new, _ in chunks:
            tokens += new
        total_ns = self._dense_ns(tokens, logits_rows)
        if seqs:
            total_ns += decode_ns - self._dense_ns(seqs, seqs)
        if chunks:
            total_ns += self._prefill_ns(chunks)
            if seqs:
                total_ns -= self._launch_ns  # Decodes and chunks share one launch.
        return max(1, total_ns)

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """The longest linear run of decode steps; see `StepModel.decode_run`."""
        seqs, ctx_sum, ctx_max, _, _, _ = shape
        run = (self._rows.get(seqs) or self._row(seqs)).run(ctx_sum, max_steps)
        if seqs < self._unequal_from:
            return run
        mean = ctx_sum // seqs
        distance = ctx_max - mean
        if distance <= 0:
            return run
        extra_ns, slope_ns, holds = self._unequal.line(seqs, self._curves[seqs], mean, distance)
        steps, first_ns, increment_ns = run
        return Run(holds if holds < steps else steps, first_ns + extra_ns, increment_ns + slope_ns)

    def in_domain(self, shape: StepShape) -> bool:
        """Whether tokens, batch, contexts and chunks were all measured. Sizes of the weights are not looked at."""
        seqs, ctx_sum, _, chunks, _, drafts = shape
        if seqs:
            limit = self._context_limits.get(seqs)
            if limit is None:
                limit = self._context_limits[seqs] = self._decode.max_context(seqs)
            if ctx_sum > limit * seqs:
                return False
        tokens, longest = seqs * (1 + drafts), self._prefill.max_query
        for new, computed in chunks:
            tokens += new
            if new + computed > longest:
                return False
        return tokens <= self._max_tokens

    def _row(self, seqs: int) -> KnotRow:
        """Build and keep the row of a batch size."""
        fixed_ns = self._dense_ns(seqs, seqs)
        ns_per_layer_us = self._geometry.layers * NS_PER_US
        curve = self._curves[seqs] = self._decode.curve(seqs)
        row = KnotRow(seqs, fixed_ns, curve, ns_per_layer_us, self._max_context)
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
            attention_ns = round(self._prefill.us(chunks) * self._geometry.layers * NS_PER_US)
            self._prefill_cache_ns[chunks] = attention_ns
        return attention_ns

    def _dense_ns(self, tokens: int, logits_rows: int) -> int:
        """Everything but attention."""
        body_ns = self._body_cache_ns.get(tokens)
        if body_ns is None:
            body_ns = self._body_cache_ns[tokens] = round(self._body_us(tokens) * NS_PER_US) + self._gap_ns
        head_ns = self._head_cache_ns.get(logits_rows)
        if head_ns is None:
            head_ns = self._head_cache_ns[logits_rows] = round(self._head_us(logits_rows) * NS_PER_US)
        return body_ns + head_ns

    def _body_us(self, tokens: int) -> float:
        """Embedding, layers without attention, final norm."""
        geometry = self._geometry
        hidden = tokens * geometry.hidden * ACTIVATION_BYTES
        reduce_us = self._all_reduce.us(tokens, hidden)
        norm_us = self._elementwise_us(4 * hidden)  # Input and residual, each read and written.
        passes = 2 if geometry.qk_norm else 1
        rotary_us = self._moved_us(2 * passes * tokens * self._rotated * ACTIVATION_BYTES)
        activation_us = self._elementwise_us(3 * tokens * self._intermediate * ACTIVATION_BYTES)
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
