"""Means and quantiles of integer nanoseconds, and Student's t.

A quantile q is the smallest observation that at least the share q of all observations does not exceed (no
interpolation: what is reported was observed). It is given only with at least 10 / (1 - q) observations, else None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ttsim_des.records.store import row_slices
from ttsim_des.units import NS_PER_S

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]
Summary: TypeAlias = dict[str, float | int | None]

QUANTILES_PER_MILLE: Final = {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99_9": 999}


def observations_needed(per_mille: int) -> int:
    """Fewest observations behind a printed quantile: 10 / (1 - q)."""
    return -(-10_000 // (1000 - per_mille))


def rank(per_mille: int, count: int) -> int:
    """1-based rank of the quantile among `count` sorted observations."""
    return max(1, -(-per_mille * count // 1000))


def exact_sum(values: IntArray) -> int:
    """Sum of int64 values as a Python integer: never overflows, whatever the order."""
    if not values.size:
        return 0
    low_bits = 24
    return (int((values >> low_bits).sum()) << low_bits) + int((values & ((1 << low_bits) - 1)).sum())


def empty() -> Summary:
    """A distribution without observations."""
    return {"count": 0, "mean": None, **dict.fromkeys(QUANTILES_PER_MILLE)}


def withheld(summary: Summary) -> Summary:
    """The same distribution with only its count: its other numbers would mislead."""
    return {**empty(), "count": summary["count"]}


def describe(values: IntArray | FloatArray, *, scale: float = 1.0) -> Summary:
    """Count, mean and quantiles of `values / scale`."""
    count = int(values.size)
    if count == 0:
        return empty()
    whole = np.issubdtype(values.dtype, np.integer)
    total = exact_sum(values.astype(np.int64, copy=False)) if whole else math.fsum(_as_floats(values))
    given = {key: q for key, q in QUANTILES_PER_MILLE.items() if count >= observations_needed(q)}
    ordered = np.partition(values, [rank(q, count) - 1 for q in given.values()]) if given else values
    quantiles = {key: float(ordered[rank(q, count) - 1]) / scale for key, q in given.items()}
    return {"count": count, "mean": float(total) / count / scale, **dict.fromkeys(QUANTILES_PER_MILLE), **quantiles}


def _as_floats(values: IntArray | FloatArray) -> Iterator[float]:
    """The values one by one; as a list of Python's floats they would take four times the memory."""
    return chain.from_iterable(values[part].tolist() for part in row_slices(values.size))


def describe_ns(values: IntArray | FloatArray) -> Summary:
    """`describe` of nanoseconds, in seconds."""
    return describe(values, scale=NS_PER_S)


def student_t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """The t that a Student t variable stays below with this probability."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, probability))


def mean_interval(replications: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of its confidence interval over independent replications (infinite for a single one)."""
    values = np.asarray(replications, dtype=np.float64)
    if values.size == 0:
        raise ValueError("an interval needs at least one replication")
    mean = float(values.mean())
    if values.size == 1:
        return mean, math.inf
    t = student_t_quantile(0.5 + confidence / 2, values.size - 1)
    return mean, t * float(values.std(ddof=1)) / math.sqrt(values.size)


def slope_t(values: FloatArray) -> tuple[float, float]:
    """Least-squares slope of `values` over their index, and its t statistic (0 for a constant, infinite if exact)."""
    index = np.arange(values.size) - (values.size - 1) / 2
    centred = values - values.mean()
    sum_of_squares = float((index**2).sum())
    slope = float((index * centred).sum()) / sum_of_squares
    residual = float(((centred - slope * index) ** 2).sum())
    error = math.sqrt(max(residual, 0.0) / (values.size - 2) / sum_of_squares)
    if error == 0:
        return slope, 0.0 if slope == 0 else math.copysign(math.inf, slope)
    return slope, slope / error


def as_json(value: Any) -> Any:
    """numpy scalars as plain Python numbers, non-finite numbers as None; containers likewise."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
