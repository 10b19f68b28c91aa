"""The step model composed from a profile of one model's layers, as LLMServingSim 2.0 records them.

Measured are the layers of one rank by tokens of a step, lm_head and sampler by sampled rows, and attention on a grid of
(prefill chunk, tokens before it, decoding sequences, their context), all in microseconds, without communication and
without CUDA graphs. docs/validity.md says how the parts are put together and what each term is worth on recordings.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ttsim_des.latency.attention import MAX_CACHED
from ttsim_des.latency.interpolate import Curve, last_slope
from ttsim_des.latency.knots import KnotRow
from ttsim_des.latency.shape import PrefillChunk, Run, StepShape
from ttsim_des.latency.unequal import StreamRate, UnequalContexts
from ttsim_des.units import NS_PER_US

ACTIVATION_BYTES = 2
ONCE = ("embedding", "final_layernorm")
TWICE = ("layernorm",)
"""Layers that run once in a step, and twice in every layer of the model; all others run once in every layer."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Corrections that can be switched off one by one, each by its name."""

    unequal_contexts: bool = True
    """The longest context of a batch counts, not only the mean."""
    mixed_attention: bool = True
    """Attention of chunks and decodes together from the 4-D table; off: the sum of both apart."""
    chunk_areas: bool = True
    """Several chunks in a step add up one by one; off: one chunk of all new tokens on all computed ones."""
    all_reduce: bool = True
    """Communication between ranks."""
    graph_padding: bool = True
    """Steps that only decode run at the next captured batch size."""
    sampler: bool = True
    """The time of choosing tokens from logits."""


@dataclass(frozen=True, slots=True)
class Link:
    """How two or more ranks exchange: time of an all-reduce = latency + bytes / rate."""

    latency_us: float
    bytes_per_s: float

    def us(self, moved_bytes: float) -> float:
        """Microseconds of one all-reduce."""
        return self.latency_us + 1e6 * moved_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class LayerTables:
    """What was measured: microseconds by tokens, by rows, and on the attention grid (axes in order)."""

    dense: Mapping[str, Curve]
    per_sequence: Mapping[str, Curve]
    axes: tuple[tuple[int, ...], ...]
    attention: NDArray[np.float64]


class LayerStepModel:
    """Time of a step of a model with `layers` layers of width `hidden`; implements `StepModel`."""

    def __init__(
        self,
        tables: LayerTables,
        *,
        layers: int,
        hidden: int,
        vocab: int,
        max_context: int,
        terms: Terms,
        link: Link | None = None,
        stream: StreamRate | None = None,
        kv_heads: int = 1,
        head_bytes: float = 0.0,
        capture_sizes: Sequence[int] = (),
        kernel_scale: float = 1.0,
    ) -> None:
        """`link`: None on one rank. `stream`: None where unequal contexts were not measured.

        `kv_heads`: of one rank, with `head_bytes` of keys and values per token each; `capture_sizes`: ascending;
        `kernel_scale` multiplies every time.
        """
        self._tables, self._terms = tables, terms
        self._ns_per_us = kernel_scale * NS_PER_US
        self._layers, self._hidden, self._vocab = layers, hidden, vocab
        self._link = link if terms.all_reduce else None
        self._max_context = max_context
        self._capture_sizes = sorted(capture_sizes) if terms.graph_padding else []
        self._unequal: UnequalContexts | None = None
        if stream is not None and terms.unequal_contexts:
            self._unequal = UnequalContexts(stream, kv_heads, kv_heads * head_bytes, self._ns_per_us * layers)
        self._max_tokens = min(int(curve.x[-1]) for curve in tables.dense.values())
        self._rows: dict[int, KnotRow] = {}
        self._curves: dict[int, Curve] = {}
        self._chunk_cache_us: dict[tuple[tuple[PrefillChunk, ...], int, int, int], float] = {}

    def step_ns(self, shape: StepShape) -> int:
        """Device time of one step; see `StepModel.step_ns`."""
        seqs, ctx_sum, ctx_max, chunks, logits_rows, _, _ = shape
        if not chunks:
            row = self._rows.get(seqs) or self._row(seqs)
            return max(1, row.step_ns(ctx_sum) + self._unequal_line(seqs, ctx_sum, ctx_max)[0])
        tokens = seqs + sum(chunk.new for chunk in chunks)
        attention_us = self._chunks_us(chunks, seqs, ctx_sum // seqs if seqs else 0, ctx_max)
        return max(1, round((attention_us * self._layers + self._dense_us(tokens, logits_rows)) * self._ns_per_us))

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """The longest linear run of decode steps; see `StepModel.decode_run`."""
        seqs, ctx_sum, ctx_max, _, _, _, _ = shape
        row = self._rows.get(seqs) or self._row(seqs)
        steps, first_ns, slope_ns, in_domain = row.line(ctx_sum, max_steps)
        extra_ns, more_ns, holds = self._unequal_line(seqs, ctx_sum, ctx_max)
        return Run(min(steps, holds) if holds else steps, first_ns + extra_ns, slope_ns + more_ns, in_domain)

    def in_domain(self, shape: StepShape) -> bool:
        """Whether tokens, sequences, contexts and chunks lie on the measured grid."""
        seqs, ctx_sum, _, chunks, _, _, _ = shape
        longest_chunk, longest_before, most_seqs, longest = (axis[-1] for axis in self._tables.axes)
        if seqs > most_seqs or (seqs and ctx_sum > longest * seqs):
            return False
        if any(new > longest_chunk or computed > longest_before for new, computed in chunks):
            return False
        return seqs + sum(chunk.new for chunk in chunks) <= self._max_tokens

    # ---- parts ----

    def _row(self, seqs: int) -> KnotRow:
        """The row of a batch that only decodes; the step runs at its captured size."""
        padded = next((size for size in self._capture_sizes if size >= seqs), seqs)
        curve = self._curves[seqs] = self._decode_curve(seqs)
        fixed_ns = round(self._dense_us(padded, padded) * self._ns_per_us)
        most_seqs, longest = self._tables.axes[2][-1], self._tables.axes[3][-1]
        measured = longest * seqs if seqs <= min(most_seqs, self._max_tokens) else 0
        ns_per_layer_us = self._layers * self._ns_per_us
        row = self._rows[seqs] = KnotRow(seqs, fixed_ns, curve, ns_per_layer_us, self._max_context, measured)
        return row

    def _decode_curve(self, seqs: int) -> Curve:
        """Microseconds a layer against the context of `seqs` decodes alone, never falling."""
        contexts = self._tables.axes[3][1:]
        us: list[float] = []
        for context in contexts:
            us.append(max([self._attention_us(0, 0, seqs, context), *us[-1:]]))
        return Curve(tuple(map(float, contexts)), tuple(us), last_slope(contexts, us))

    def _unequal_line(self, seqs: int, ctx_sum: int, ctx_max: int) -> tuple[int, int, int]:
        if self._unequal is None or seqs < self._unequal.min_seqs:
            return 0, 0, 0
        mean = ctx_sum // seqs
        if ctx_max <= mean:
            return 0, 0, 0
        if seqs not in self._curves:
            self._row(seqs)
        return self._unequal.line(seqs, self._curves[seqs], mean, ctx_max - mean)

    def _dense_us(self, tokens: int, rows: int) -> float:
        """Everything but attention."""
        total = 0.0
        for name, curve in self._tables.dense.items():
            times = 1 if name in ONCE else self._layers * (2 if name in TWICE else 1)
            total += times * curve.at(tokens)
        if rows:
            for name, curve in self._tables.per_sequence.items():
                if name != "sampler" or self._terms.sampler:
                    total += curve.at(rows)
        if self._link is not None:  # behind the embedding, and twice in every layer; logits are gathered
            total += (2 * self._layers + 1) * self._link.us(tokens * self._hidden * ACTIVATION_BYTES)
            if rows:
                total += self._link.us(rows * self._vocab * ACTIVATION_BYTES) / 2  # half an all-reduce of that size
        return total

    def _chunks_us(self, chunks: tuple[PrefillChunk, ...], seqs: int, mean: int, longest: int) -> float:
        """Attention of a step with chunks, a layer."""
        key = (chunks, seqs, mean, longest)
        found = self._chunk_cache_us.get(key)
        if found is None:
            if len(self._chunk_cache_us) >= MAX_CACHED:
                self._chunk_cache_us.clear()
            found = self._chunk_cache_us[key] = self._measure_chunks(chunks, seqs, mean, longest)
        return found

    def _measure_chunks(self, chunks: tuple[PrefillChunk, ...], seqs: int, mean: int, longest: int) -> float:
        if not self._terms.chunk_areas:
            chunks = (PrefillChunk(sum(chunk.new for chunk in chunks), sum(chunk.computed for chunk in chunks)),)
        # The chunk that costs most shares a launch with the decodes; each other one adds what it costs beyond a launch.
        launch_us = self._attention_us(1, 0, 0, 0)
        each_us = sorted((self._attention_us(new, computed, 0, 0), new, computed) for new, computed in chunks)
        dearest_us, new, computed = each_us[-1]
        together_us = dearest_us
        if seqs and self._terms.mixed_attention:
            together_us = self._attention_us(new, computed, seqs, mean)
        elif seqs:
            together_us += self._attention_us(0, 0, seqs, mean)
        if self._unequal is not None and longest > mean > 0:
            # With chunks beside them, decodes are never split over blocks, so the longest counts in any batch.
            together_us += self._unequal.exact_us(Curve((0.0,), (together_us,), 0.0), mean, longest)
        return together_us + sum(max(0.0, us - launch_us) for us, _, _ in each_us[:-1])

    def _attention_us(self, chunk: float, before: float, seqs: float, context: float) -> float:
        """Linear between the points of the grid; past its end the last two points go on, along every axis."""
        corners = [
            _bracket(axis, value) for axis, value in zip(self._tables.axes, (chunk, before, seqs, context), strict=True)
        ]
        total = 0.0
        for corner in product(*corners):
            weight = corner[0][1] * corner[1][1] * corner[2][1] * corner[3][1]
            if weight:
                total += weight * float(self._tables.attention[tuple(place for place, _ in corner)])
        return max(0.0, total)


def _bracket(axis: Sequence[int], value: float) -> list[tuple[int, float]]:
    """Places on an axis and their weights; 0 (nothing there) is a point of its own, never mixed with others."""
    if value <= 0:
        return [(0, 1.0)]
    if value <= axis[1]:
        return [(1, 1.0)]
    right = min(max(bisect_right(axis, value), 2), len(axis) - 1)
    if axis[right - 1] == value:
        right = max(bisect_left(axis, value), 2)
    share = (value - axis[right - 1]) / (axis[right] - axis[right - 1])
    return [(right - 1, 1.0 - share), (right, share)]
