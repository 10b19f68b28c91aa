"""An adaptive grid: where interpolation misses a point that it has not seen, that point becomes part of the grid."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

TOLERANCE = 0.03


class HeldOut(NamedTuple):
    """A point that was predicted before it was measured."""

    at: int
    predicted_us: float
    measured_us: float

    @property
    def error(self) -> float:
        """Relative, without sign."""
        return abs(self.predicted_us / self.measured_us - 1)


def linear(x: float, low: tuple[int, float], high: tuple[int, float]) -> float:
    """As the simulator interpolates: straight between neighbours."""
    share = (x - low[0]) / (high[0] - low[0])
    return low[1] + share * (high[1] - low[1])


def between(low: int, high: int) -> int | None:
    """The point half way on a logarithmic axis; None where there is none."""
    middle = round((low * high) ** 0.5) if low else high // 2
    return middle if low < middle < high else None


def refine(
    measured: dict[int, float], measure: Callable[[int], float], *, depth: int, tolerance: float = TOLERANCE
) -> list[HeldOut]:
    """Measure the middle of every interval; where it was missed, add it and look at both halves, `depth` times.

    `measured` (microseconds by position) grows by every point looked at. Returns them, each predicted from its
    neighbours before it was known.
    """
    looked: list[HeldOut] = []
    grid = sorted(measured)
    intervals = list(pairwise(grid))
    for _ in range(depth):
        missed = []
        for low, high in intervals:
            middle = between(low, high)
            if middle is None:
                continue
            predicted = linear(middle, (low, measured[low]), (high, measured[high]))
            measured[middle] = measure(middle)
            held_out = HeldOut(middle, predicted, measured[middle])
            looked.append(held_out)
            if held_out.error > tolerance:
                missed += [(low, middle), (middle, high)]
        intervals = missed
    return looked


def leave_one_out(measured: dict[int, float]) -> list[HeldOut]:
    """Every inner point predicted from its neighbours: what the finished grid would say without it."""
    grid = sorted(measured)
    return [
        HeldOut(at, linear(at, (low, measured[low]), (high, measured[high])), measured[at])
        for low, at, high in zip(grid, grid[1:], grid[2:], strict=False)
    ]
