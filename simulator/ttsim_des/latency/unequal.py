"""Unequal contexts in decode attention: one long sequence holds up a batch whose mean is short.

FlashAttention splits the KV cache of a sequence over several thread blocks while there are fewer (sequence, KV head)
pairs than the GPU runs blocks at a time. From there on one block reads all keys and values of a sequence, and the step
waits for the block with the longest one. Its time is `launch + bytes / rate of one block`; the batch takes

    t = t_mean * sqrt((1 + (s(longest) / t_mean)^2) / (1 + (s(mean) / t_mean)^2)),    s(c) = launch_us + token_us * c

with t_mean the measured time of equal contexts: about s(longest) where that is far above t_mean, and t_mean exactly
where contexts are equal. docs/latency.md says how well this fits measurements. Only sums, products and square roots are
used, which every CPU rounds alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from ttsim_des.latency.interpolate import Curve

SPLIT_SHARE = 0.8
BLOCKS_PER_SM = 2
"""FlashAttention-2 splits no longer from 0.8 x 2 x SMs (sequence, KV head) pairs on (flash_api.cpp)."""
STREAM_SHARE = 1.25
"""A block alone reads this many times its SM's share of the bandwidth: 1.18 to 1.33 in the fits of docs/latency.md."""
MAX_PIECES = 1 << 15

_MEAN_SHIFTS = tuple(min(max(bits - 3, 5), 11) for bits in range(64))
_DISTANCE_SHIFTS = tuple(min(max(bits - 3, 6), 11) for bits in range(64))
"""Binary logarithms of a cell's widths by the bit length of where it is."""


@dataclass(frozen=True, slots=True)
class StreamRate:
    """How one thread block reads a KV cache: SMs of the GPU, bytes per second of one block, time before the first.

    `is_measured`: by batches of unequal contexts on this GPU; else the rate is derived from its bandwidth.
    """

    sms: int
    bytes_per_s: float
    launch_us: float = 0.0
    is_measured: bool = False


Piece = tuple[int, int, int, int, int, int, int, int]
"""The term in a cell of mean contexts and distances to the longest: linear in each, in whole nanoseconds.

First mean and the one behind the last, first distance and width of distances; nanoseconds there, per unit of
distance and per unit of mean, and how much more the last is at the far end of distances.
"""


class UnequalContexts:
    """The term in whole nanoseconds: a function of sequences, whole mean context, and its distance to the longest.

    While a batch decodes, its mean and its longest context grow together, so the distance stays. In each cell the term
    runs straight between its corners. Cells are an eighth to a quarter as wide as where they begin, at
    least 32 (means) or 64 tokens (distances) and at most 2048. A piece is a pure function of its cell, so old ones can
    be dropped.
    """

    def __init__(self, rate: StreamRate, kv_heads: int, kv_bytes_per_token: float, ns_per_layer_us: float) -> None:
        """`kv_heads` and `kv_bytes_per_token` (of one layer) are those of one GPU.

        `ns_per_layer_us`: nanoseconds of a step for a microsecond in each layer.
        """
        self.min_seqs = ceil(SPLIT_SHARE * BLOCKS_PER_SM * rate.sms / kv_heads)
        self._launch_us = rate.launch_us
        self._token_us = 1e6 * kv_bytes_per_token / kv_heads / rate.bytes_per_s
        self._ns_per_layer_us = ns_per_layer_us
        self._pieces: dict[tuple[int, int, int], Piece] = {}

    def line(self, seqs: int, curve: Curve, mean: int, distance: int) -> tuple[int, int, int]:
        """Nanoseconds more than equal contexts take, their growth per token of mean, and for how many tokens it holds.

        For a batch of `seqs` whose equal contexts take `curve` microseconds a layer; the distance stays.
        """
        shift, far_shift = _MEAN_SHIFTS[mean.bit_length()], _DISTANCE_SHIFTS[distance.bit_length()]
        key = (seqs, mean >> shift << shift, distance >> far_shift << far_shift)
        start, end, near, width, extra_ns, per_distance_ns, slope_ns, gain_ns = self._pieces.get(key) or self._add(
            key, curve, 1 << shift, 1 << far_shift
        )
        far = distance - near
        slope_ns += gain_ns * far // width
        return extra_ns + per_distance_ns * far + slope_ns * (mean - start), slope_ns, end - mean

    def exact_us(self, curve: Curve, mean: float, longest: float) -> float:
        """The term in microseconds a layer, before cells and whole nanoseconds."""
        return self._terms_us(curve, mean, (longest,))[0]

    def _terms_us(self, curve: Curve, mean: float, longest: Sequence[float]) -> list[float]:
        """`exact_us` for each of these longest contexts."""
        mean_us, launch_us, token_us = curve.at(mean), self._launch_us, self._token_us
        near = (launch_us + token_us * mean) / mean_us
        alike = 1 + near * near
        terms_us = []
        for context in longest:
            far = (launch_us + token_us * context) / mean_us
            terms_us.append(mean_us * (sqrt((1 + far * far) / alike) - 1))
        return terms_us

    def _add(self, key: tuple[int, int, int], curve: Curve, width: int, far_width: int) -> Piece:
        _, mean, distance = key
        near_ns, far_ns = self._corners_ns(curve, mean, distance, far_width)
        near_end_ns, far_end_ns = self._corners_ns(curve, mean + width, distance, far_width)
        slope_ns = round((near_end_ns - near_ns) / width)
        gain_ns = round((far_end_ns - far_ns) / width) - slope_ns
        if len(self._pieces) >= MAX_PIECES:
            self._pieces.clear()
        per_distance_ns = round((far_ns - near_ns) / far_width)
        piece = (mean, mean + width, distance, far_width, near_ns, per_distance_ns, slope_ns, gain_ns)
        self._pieces[key] = piece
        return piece

    def _corners_ns(self, curve: Curve, mean: int, distance: int, width: int) -> tuple[int, int]:
        near_us, far_us = self._terms_us(curve, mean, (mean + distance, mean + distance + width))
        return round(self._ns_per_layer_us * near_us), round(self._ns_per_layer_us * far_us)
