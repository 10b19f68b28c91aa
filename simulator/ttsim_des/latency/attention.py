"""Latency of attention kernels, per layer, from the measured grids.

Heads that were not measured (28, 14 and 7 of a 7B model) are interpolated linearly between measured ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import mul

from ttsim_des.errors import bad_input
from ttsim_des.latency.interpolate import Curve, Weights, bracket, isotonic, last_slope
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.latency.shape import PrefillChunk

BatchCurves = dict[int, Curve]
"""One curve per measured batch size."""
_Points = tuple[tuple[float, ...], list[tuple[float, ...]]]
"""Contexts, and at each of them what several curves say."""
MAX_CACHED = 1 << 14
"""Entries of a cache of chunks; beyond, it starts anew."""


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
        self._batches = [sorted(curves) for _, curves in self._corners]
        self.max_batch = min(batches[-1] for batches in self._batches)
        self._points: dict[tuple[int, ...], _Points] = {}

    def curve(self, batch: int) -> Curve:
        """Microseconds against the (mean) context for `batch` sequences, never falling."""
        nears: list[int] = []
        weights: list[float] = []
        parts: list[Curve] = []
        for (weight, curves), batches in zip(self._corners, self._batches, strict=True):
            scale = max(1.0, batch / batches[-1])
            for near, share in bracket(batch, batches):
                nears.append(near)
                weights.append(weight * share * scale)
                parts.append(curves[near])
        contexts, columns = self._points.get(tuple(nears)) or self._points_of(tuple(nears), parts)
        latency_us = tuple(sum(map(mul, weights, column)) for column in columns)
        return Curve(contexts, latency_us, sum(map(mul, weights, (curve.end_slope for curve in parts))))

    def _points_of(self, nears: tuple[int, ...], parts: Sequence[Curve]) -> _Points:
        """All contexts that these curves have points at: the same for many batch sizes, so they are kept."""
        contexts = tuple(sorted({context for curve in parts for context in curve.x}))
        columns = [tuple(curve.at(context) for curve in parts) for context in contexts]
        self._points[nears] = contexts, columns
        return contexts, columns

    def max_context(self, batch: int) -> float:
        """The longest context inside the measured domain for `batch` sequences; 0 beyond the largest batch."""
        if batch > self.max_batch:
            return 0
        return min(
            curves[size].x[-1]
            for (_, curves), batches in zip(self._corners, self._batches, strict=True)
            for size, _ in bracket(batch, batches)
        )


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
        corners = [
            (weight, _prefill_curves(profile, near_heads, near_kv, head_dim, kv_dtype))
            for near_heads, near_kv, weight in _near(profile, "context_attention", heads, kv_heads, head_dim, kv_dtype)
        ]
        self.max_query = min(max(curves[1].x) for _, curves in corners)
        self._curves = _combined(corners)
        self._sizes = sorted(self._curves)
        self._read_us_per_token = 1e6 * kv_bytes_per_token / profile.meta.bandwidth_bytes_per_s
        self._prefix_cache_us: dict[PrefillChunk, float] = {}
        self.launch_us = self._equal_us(1, 1)

    def us(self, chunks: Sequence[PrefillChunk]) -> float:
        """Microseconds for all chunks of a step in one launch."""
        tokens = area = 0
        prefixes_us = 0.0
        for chunk in chunks:
            new, computed = chunk
            tokens += new
            area += new * new
            if computed:
                prefixes_us += self._prefix_cache_us.get(chunk) or self._prefix_us(chunk)
        each = area / tokens
        return self._equal_us(tokens / each, each) + prefixes_us

    def _prefix_us(self, chunk: PrefillChunk) -> float:
        new, computed = chunk
        whole = new + computed
        area_share = new * computed / (whole * (whole + 1) / 2)
        area_us = (self._equal_us(1, whole) - self.launch_us) * area_share
        if len(self._prefix_cache_us) >= MAX_CACHED:
            self._prefix_cache_us.clear()
        prefix_us = self._prefix_cache_us[chunk] = max(area_us, computed * self._read_us_per_token)
        return prefix_us

    def _equal_us(self, batch: float, query: float) -> float:
        """Microseconds for `batch` prompts of `query` tokens: linear in both, by area past the longest measured."""
        sizes = self._sizes
        if batch <= sizes[0]:
            return _by_area(self._curves[sizes[0]], query)
        if batch >= sizes[-1]:
            return _by_area(self._curves[sizes[-1]], query) * batch / sizes[-1]
        right = bisect_right(sizes, batch)
        low, high = sizes[right - 1], sizes[right]
        low_us = _by_area(self._curves[low], query)
        return low_us + (_by_area(self._curves[high], query) - low_us) * (batch - low) / (high - low)


def windowed(curve: Curve, window: int, share: float) -> Curve:
    """The mean over layers of which a `share` reaches back no further than `window` tokens."""
    x = tuple(sorted({*curve.x, float(window)}))
    flat = curve.at(window)
    y = tuple((1 - share) * curve.at(at) + share * min(curve.at(at), flat) for at in x)
    return Curve(x, y, curve.end_slope * (1 - share))


def pieces(chunks: Sequence[PrefillChunk], window: int) -> tuple[PrefillChunk, ...]:
    """Chunks cut into pieces of `window` tokens, each on top of no more than another `window`: nearly the same area."""
    return tuple(
        PrefillChunk(min(window, new - start), min(window, computed + start))
        for new, computed in chunks
        for start in range(0, new, window)
    )


def _by_area(curve: Curve, query: float) -> float:
    """The curve up to its end, growing with the square of the prompt from there."""
    longest = curve.x[-1]
    return curve.at(query) if query <= longest else (query / longest) ** 2 * curve.y[-1]


def _combined(corners: Sequence[tuple[float, BatchCurves]]) -> BatchCurves:
    """One set of curves instead of a weighted sum over corners, on all batch sizes and prompts that any of them has."""
    combined: BatchCurves = {}
    for batch in sorted({size for _, curves in corners for size in curves}):
        parts: list[tuple[float, Curve]] = []
        for weight, curves in corners:
            sizes = sorted(curves)
            scale = max(1.0, batch / sizes[-1])
            parts += [(weight * share * scale, curves[near]) for near, share in bracket(batch, sizes)]
        queries = tuple(sorted({query for _, curve in parts for query in curve.x}))
        latency_us = tuple(sum(weight * _by_area(curve, query) for weight, curve in parts) for query in queries)
        combined[batch] = Curve(queries, latency_us, last_slope(queries, latency_us))
    return combined


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
