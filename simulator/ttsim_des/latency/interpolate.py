"""Piecewise-linear curves through measured points, and where a value falls between measured ones."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

Weights = list[tuple[int, float]]
"""Measured values to combine, and how much of each; the weights add up to 1."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (x, y) with x strictly rising; linear between them, flat before the first, `end_slope` past the last."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    end_slope: float

    def at(self, x: float) -> float:
        """The value at `x`."""
        xs, ys = self.x, self.y
        if x <= xs[0]:
            return ys[0]
        if x >= xs[-1]:
            return ys[-1] + (x - xs[-1]) * self.end_slope
        right = bisect_right(xs, x)
        left = right - 1
        return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])


def last_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope between the last two points; 0 when there is only one."""
    return (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else 0.0


def bracket(value: float, measured: Sequence[int], *, logarithmic: bool = False) -> Weights:
    """The measured values (sorted) around `value` with their interpolation weights; the nearest alone outside."""
    if value <= measured[0]:
        return [(measured[0], 1.0)]
    if value >= measured[-1]:
        return [(measured[-1], 1.0)]
    right = bisect_left(measured, value)
    low, high = measured[right - 1], measured[right]
    if high == value:
        return [(high, 1.0)]
    if logarithmic:
        share = math.log(value / low) / math.log(high / low)
    else:
        share = (value - low) / (high - low)
    return [(low, 1.0 - share), (high, share)]


def isotonic(values: Sequence[float]) -> list[float]:
    """The nearest non-decreasing sequence (pool adjacent violators): takes measurement noise out of a rising curve."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            earlier, members = pools.pop()
            total, count = total + earlier, count + members
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]
