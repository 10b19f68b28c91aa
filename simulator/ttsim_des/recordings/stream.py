"""How fast one thread block reads a KV cache, from a table of batches with one group of long contexts."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.unequal import BLOCKS_PER_SM, SPLIT_SHARE, StreamRate, UnequalContexts

ITERATIONS = 3
"""The times of a skew table are sums of so many."""


@dataclass(frozen=True, slots=True)
class StreamFit:
    """The fitted rate, in how many batches, and the errors (|log ratio|) with the term and with the mean alone."""

    rate: StreamRate
    first_seqs: float
    errors: NDArray[np.float64]
    errors_of_mean: NDArray[np.float64]


def fit_stream(table: Path, *, sms: int, kv_heads: int, token_bytes: float = 512) -> StreamFit:
    """Fit a skew table of an LLMServingSim 2.0 profile: its batches without chunks from where splitting has ended.

    `token_bytes`: keys and values of one token and KV head.
    """
    from scipy.optimize import minimize_scalar

    with table.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["regime"] == "pure"]
    first = SPLIT_SHARE * BLOCKS_PER_SM * sms / kv_heads
    batches = [
        (float(row["kv_mean"]), float(row["kv_big"]), *(float(row[t]) / ITERATIONS for t in ("t_mean_us", "t_skew_us")))
        for row in rows
        if int(row["n"]) >= first
    ]

    def errors(bytes_per_s: float) -> NDArray[np.float64]:
        term = UnequalContexts(StreamRate(sms, bytes_per_s), 1, token_bytes, 1000)
        found = [
            t_mean + term.exact_us(Curve((0.0,), (t_mean,), 0.0), mean, longest) for mean, longest, t_mean, _ in batches
        ]
        ratios: NDArray[np.float64] = np.array(found) / np.array([measured for *_, measured in batches])
        return np.abs(np.log(ratios))

    best = minimize_scalar(lambda rate: errors(rate).mean(), bounds=(1e9, 1e12), method="bounded")
    rate = float(f"{best.x:.4g}")
    return StreamFit(StreamRate(sms, rate, 0.0, True), first, errors(rate), errors(1e30))
