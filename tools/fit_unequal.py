"""Fit the rate at which one thread block reads a KV cache, the parameter of unequal contexts (docs/latency.md).

    python tools/fit_unequal.py skew.csv --sms 128 --kv-heads 8 --token-bytes 512 --bandwidth 1.008e12

The CSV is the skew table of an LLMServingSim 2.0 kernel profile: batches with one group of long contexts; `regime`, `n`
sequences, contexts `kv_big` and `kv_mean`, and the times `t_mean_us` (all at the mean) and `t_skew_us` (as they are),
each a sum of 3 iterations. `--token-bytes`: keys and values of one token and KV head. Prints the rate and the errors
with and without the term.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.unequal import BLOCKS_PER_SM, SPLIT_SHARE, StreamRate, UnequalContexts

ITERATIONS = 3


def main() -> None:
    """Fit one table."""
    parser = argparse.ArgumentParser(description="Fit the parameter of unequal contexts.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--sms", type=int, required=True)
    parser.add_argument("--kv-heads", type=int, required=True)
    parser.add_argument("--token-bytes", type=float, default=512)
    parser.add_argument("--bandwidth", type=float, required=True, help="bytes per second")
    arguments = parser.parse_args()
    with arguments.table.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["regime"] == "pure"]
    first = SPLIT_SHARE * BLOCKS_PER_SM * arguments.sms / arguments.kv_heads
    batches = [
        (float(row["kv_mean"]), float(row["kv_big"]), *(float(row[t]) / ITERATIONS for t in ("t_mean_us", "t_skew_us")))
        for row in rows
        if int(row["n"]) >= first
    ]

    def errors(rate: float) -> NDArray[np.float64]:
        term = UnequalContexts(StreamRate(arguments.sms, rate), 1, arguments.token_bytes, 1)
        found = [
            t_mean + term.exact_us(Curve((0.0,), (t_mean,), 0.0), mean, longest) for mean, longest, t_mean, _ in batches
        ]
        ratios: NDArray[np.float64] = np.array(found) / np.array([measured for *_, measured in batches])
        return np.abs(np.log(ratios))

    rate = float(minimize_scalar(lambda rate: errors(rate).mean(), bounds=(1e9, 1e12), method="bounded").x)
    print(f"{len(batches)} batches of {first:.0f} sequences and more")
    print(f"stream_bytes_per_s = {rate:.4g}, {rate / (arguments.bandwidth / arguments.sms):.2f} x bandwidth / SMs")
    for name, found in (("with the term", errors(rate)), ("mean alone", errors(1e30))):
        print(f"{name}: median {100 * np.median(found):.1f} %, p90 {100 * np.percentile(found, 90):.1f} %")


if __name__ == "__main__":
    main()
