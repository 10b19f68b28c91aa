"""Fit the rate at which one thread block reads a KV cache, the parameter of unequal contexts (docs/latency.md).

    python tools/fit_unequal.py skew.csv --sms 128 --kv-heads 8 --token-bytes 512 --bandwidth 1.008e12

The CSV is the skew table of an LLMServingSim 2.0 kernel profile: batches with one group of long contexts; `regime`, `n`
sequences, contexts `kv_big` and `kv_mean`, and the times `t_mean_us` (all at the mean) and `t_skew_us` (as they are),
each a sum of 3 iterations. `--token-bytes`: keys and values of one token and KV head. Prints the rate and the errors
with and without the term.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ttsim_des.recordings.stream import fit_stream


def main() -> None:
    """Fit one table."""
    parser = argparse.ArgumentParser(description="Fit the parameter of unequal contexts.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--sms", type=int, required=True)
    parser.add_argument("--kv-heads", type=int, required=True)
    parser.add_argument("--token-bytes", type=float, default=512)
    parser.add_argument("--bandwidth", type=float, required=True, help="bytes per second")
    arguments = parser.parse_args()
    fit = fit_stream(arguments.table, sms=arguments.sms, kv_heads=arguments.kv_heads, token_bytes=arguments.token_bytes)
    rate = fit.rate.bytes_per_s
    print(f"{fit.errors.size} batches of {fit.first_seqs:.0f} sequences and more")
    print(f"stream_bytes_per_s = {rate:.4g}, {rate / (arguments.bandwidth / arguments.sms):.2f} x bandwidth / SMs")
    for name, found in (("with the term", fit.errors), ("mean alone", fit.errors_of_mean)):
        print(f"{name}: median {100 * np.median(found):.1f} %, p90 {100 * np.percentile(found, 90):.1f} %")


if __name__ == "__main__":
    main()
