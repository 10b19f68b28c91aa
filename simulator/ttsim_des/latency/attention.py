"""Latency of attention kernels, per layer, from the measured grids.

Heads that were not measured (28, 14 and 7 of a 7B model) are interpolated linearly between measured ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from ttsim_des.errors import bad_input
from ttsim_des.latency.interpolate import Curve, Weights, bracket, isotonic, last_slope
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.latency.shape import PrefillChunk

BatchCurves = dict[int, Curve]
"""One curve per measured batch size."""


class DecodeAttention:
    """One query token per sequence, against batch and context.

    Linear in batch and in context on the measured grid. The grid is triangular (large batches were measured with short
    contexts only), so past its end a batch's curve goes on linearly. Where it ends short of the regime in
    which memory bandwidth rules, its own last slope is too flat: it then takes the slope per token in flight of the
    batch that was measured with the most tokens.
    """

    def __init__(self, profile: GpuProfile, heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> None:
        """Per GPU; InputError when the profile holds nothing near these heads."""
        self._corners = [
            (weight, _decode_curves(profile, near_heads, near_kv, head_dim, kv_dtype))
            for near_heads, near_kv, weight in _near(profile, "decode_attention", heads, kv_heads, head_dim, kv_dtype)
        ]
        self.max_batch = min(max(curves) for _, curves in self._corners)

    def curve(self, batch: int) -> Curve:
        """Microseconds against the (mean) context for `batch` sequences, never falling."""
        parts: list[tuple[float, Curve]] = []
        for weight, curves in self._corners:
            largest = max(curves)
            scale = max(1.0, batch / largest)
            parts += [(weight * share * scale, curves[near]) for near, share in bracket(batch, sorted(curves))]
        contexts = tuple(sorted({context for _, curve in parts for context in curve.x}))
        latency_us = tuple(sum(weight * curve.at(context) for weight, curve in parts) for context in contexts)
        return Curve(contexts, latency_us, sum(weight * curve.end_slope for weight, curve in parts))

    def max_context(self, batch: int) -> float:
        """The longest context inside the measured domain for `batch` sequences; 0 beyond the largest batch."""
        if batch > self.max_batch:
            return 0
        near = [curves[size] for _, curves in self._corners for size, _ in bracket(batch, sorted(curves))]
        return min(curve.x[-1] for curve in near)


class PrefillAttention:
    """Chunks of prompts, each perhaps on top of tokens that are already in the KV cache.

    Measured are b equal prompts of n tokens without anything before them. Chunks of unequal size count as
    sum(n) / n_eff chunks of n_eff = sum(n^2) / sum(n) tokens: the same number of tokens and the same query-key area,
    in one launch. A prefix of c tokens adds an area of n c for each chunk, at the rate at which a prompt of n + c
    tokens is computed, and at least the time to read its keys and values once.
    """

    def __init__(
        self, profile: GpuProfile, heads: int, kv_heads: int, head_dim: int, kv_dtype: str, kv_bytes_per_token: float
    ) -> None:
        """Per GPU and layer; InputError when the profile holds nothing near these heads."""
        self._corners = [
            (weight, _prefill_curves(profile, near_heads, near_kv, head_dim, kv_dtype))
            for near_heads, near_kv, weight in _near(profile, "context_attention", heads, kv_heads, head_dim, kv_dtype)
        ]
        self._read_us_per_token = 1e6 * kv_bytes_per_token / profile.meta.bandwidth_bytes_per_s
        self.max_query = min(max(curves[1].x) for _, curves in self._corners)
        self.launch_us = self._equal_us(1, 1)

    def us(self, chunks: Sequence[PrefillChunk]) -> float:
        """Microseconds for all chunks of a step in one launch."""
        tokens = sum(chunk.new for chunk in chunks)
        each = sum(chunk.new * chunk.new for chunk in chunks) / tokens
        total_us = self._equal_us(tokens / each, each)
        for new, computed in chunks:
            if computed:
                total_us += self._prefix_us(new, computed)
        return total_us

    def _prefix_us(self, new: int, computed: int) -> float:
        whole = new + computed
        area_share = new * computed / (whole * (whole + 1) / 2)
        return max((self._equal_us(1, whole) - self.launch_us) * area_share, computed * self._read_us_per_token)

    def _equal_us(self, batch: float, query: float) -> float:
        """Microseconds for `batch` prompts of `query` tokens: linear in both, by area past the longest measured."""
        total_us = 0.0
        for weight, curves in self._corners:
            sizes = sorted(curves)
            scale = max(1.0, batch / sizes[-1])
            for near, share in bracket(batch, sizes):
                curve = curves[near]
                longest = curve.x[-1]
                area = (query / longest) ** 2 if query > longest else 1.0
                total_us += weight * share * scale * area * curve.at(min(query, longest))
        return total_us


def _near(
    profile: GpuProfile, family: str, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
) -> list[tuple[int, int, float]]:
    """Measured (heads, KV heads) around the wanted ones, with weights; InputError outside the measured range."""
    if kv_dtype not in profile.labels(family):
        measured = ", ".join(profile.labels(family))
        raise bad_input(
            f"GPU profile {profile.meta.name} has no attention over a {kv_dtype} KV cache",
            key="cluster.kv_dtype",
            expected=measured,
        )
    all_kv = profile.values(family, kv_dtype, "kv_heads", head_dim=head_dim)
    found: list[tuple[int, int, float]] = []
    if all_kv and kv_heads <= all_kv[-1]:
        for near_kv, weight_kv in bracket(kv_heads, all_kv):
            all_heads = profile.values(family, kv_dtype, "heads", head_dim=head_dim, kv_heads=near_kv)
            near: Weights = bracket(heads, all_heads) if heads <= all_heads[-1] else []
            found += [(near_heads, near_kv, weight_kv * weight) for near_heads, weight in near]
    if sum(weight for _, _, weight in found) < 0.999:
        raise bad_input(
            f"GPU profile {profile.meta.name} has no {family.replace('_', ' ')} near {heads} heads, "
            f"{kv_heads} KV heads and head size {head_dim} on one GPU",
            key="cluster.model",
            expected=f"head sizes {profile.values(family, kv_dtype, 'head_dim')}, at most {all_kv[-1:] or 0} KV heads",
        )
    return found


def _decode_curves(profile: GpuProfile, heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> BatchCurves:
    points = _by_batch(profile, "decode_attention", "context", heads, kv_heads, head_dim, kv_dtype)
    busiest = max(points, key=lambda batch: (batch * points[batch][0][-1], batch))
    per_token_us = last_slope(*points[busiest]) / busiest
    return {
        batch: Curve(tuple(x), tuple(y), max(last_slope(x, y), per_token_us * batch))
        for batch, (x, y) in points.items()
    }


def _prefill_curves(profile: GpuProfile, heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> BatchCurves:
    points = _by_batch(profile, "context_attention", "query", heads, kv_heads, head_dim, kv_dtype)
    return {batch: Curve(tuple(x), tuple(y), last_slope(x, y)) for batch, (x, y) in points.items()}


def _by_batch(
    profile: GpuProfile, family: str, axis: str, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
) -> dict[int, tuple[list[float], list[float]]]:
    """Points along `axis` of each measured batch size, made non-decreasing."""
    rows = profile.select(family, kv_dtype, head_dim=head_dim, kv_heads=kv_heads, heads=heads)
    points = {}
    for batch in sorted(set(rows["batch"].tolist())):
        chosen = rows["batch"] == batch
        order = rows[axis][chosen].argsort()
        along = rows[axis][chosen][order].tolist()
        points[int(batch)] = (along, isotonic(rows["latency_us"][chosen][order].tolist()))
    return points
