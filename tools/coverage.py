"""How often nominal 95 % intervals over replications hold the truth, where queueing theory knows it.

    python tools/coverage.py                      # 1,000 macro-runs of 20 replications for each of three queues
    python tools/coverage.py --macro-runs 100     # a shorter look

A macro-run is what a user does: R independent replications, a warm-up cut, Student's t over their means. The queues are
those of tests/theory: one server with constant lengths (M/D/1), two with geometric lengths (M/M/2), and processor
sharing (M/G/1-PS). Exit code 1 when the coverage of one is outside 92.5 to 97.5 %.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ttsim_des.metrics.stats import mean_interval

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "theory"))

import oracles  # type: ignore[import-not-found]
from world import (  # type: ignore[import-not-found]
    STEP_NS,
    column,
    lengths_file,
    run_world,
    scenario,
)

LOAD = 0.5
MEAN_TOKENS = 500
QUERIES = 500
WARMUP = 50
LENGTHS = {"distribution": "table", "file": "lengths.parquet", "column": "tokens"}
LEAST_PCT, MOST_PCT = 92.5, 97.5
Replicate = Callable[[int], float]


def md1(folder: Path, replication: int) -> float:
    """Mean wait of one server with constant lengths, in seconds."""
    world = _world({"distribution": "constant", "tokens": MEAN_TOKENS}, MEAN_TOKENS * STEP_NS / 1e9, 1)
    return _mean_wait_s(world, folder, replication, servers=1)


def mm2(folder: Path, replication: int) -> float:
    """Mean wait of two servers with geometric lengths, in seconds."""
    lengths = oracles.geometric_quantiles(MEAN_TOKENS, 4000)
    world = _world(LENGTHS, float(np.mean(lengths)) * STEP_NS / 1e9, 2)
    return _mean_wait_s(world, folder, replication, servers=2)


def processor_sharing(folder: Path, replication: int) -> float:
    """Mean sojourn over size where a step's time is proportional to its batch."""
    output = {"distribution": "lognormal", "mean": float(MEAN_TOKENS), "query_sigma": 0.7, "min": 100}
    world = _world(output, MEAN_TOKENS * STEP_NS / 1e9, 1)
    tables = run_world(world, folder, replication=replication, per_token_ns=STEP_NS)
    sojourn_ns = column(tables.queries, "finish_ns") - column(tables.queries, "arrival_ns")
    size_ns = column(tables.queries, "output_tokens") * STEP_NS
    return float((sojourn_ns / size_ns)[WARMUP:].mean())


def _world(output: dict[str, Any], service_s: float, servers: int) -> Any:
    arrivals = {"process": "poisson", "rate_per_s": LOAD * servers / service_s}
    return scenario(arrivals, output, QUERIES)


def _mean_wait_s(world: Any, folder: Path, replication: int, *, servers: int) -> float:
    requests = run_world(world, folder, replication=replication, max_num_seqs=servers).requests
    waits_ns = column(requests, "scheduled_ns") - column(requests, "arrival_ns")
    return float(waits_ns[WARMUP:].mean()) / 1e9


def truths() -> dict[str, tuple[Callable[[Path, int], float], float]]:
    """Each queue, and what theory says of it. Decisions fall at step boundaries: waits are half a step longer."""
    constant_s = MEAN_TOKENS * STEP_NS / 1e9
    geometric_s = float(np.mean(oracles.geometric_quantiles(MEAN_TOKENS, 4000))) * STEP_NS / 1e9
    half_step_s = STEP_NS / 2e9
    return {
        "M/D/1": (md1, oracles.mg1_wait(LOAD / constant_s, constant_s, constant_s**2)),
        "M/M/2": (mm2, oracles.mmc_wait(2 * LOAD / geometric_s, geometric_s, 2) + half_step_s * LOAD),
        "M/G/1-PS": (processor_sharing, oracles.ps_slowdown(LOAD)),
    }


def coverage(values: Sequence[float], truth: float, replications: int) -> tuple[float, float]:
    """Percent of macro-runs whose interval holds the truth, and their mean half width in percent of it."""
    runs = np.array(values).reshape(-1, replications)
    found = [mean_interval(run.tolist()) for run in runs]
    held = [abs(mean - truth) <= half for mean, half in found]
    return 100 * float(np.mean(held)), 100 * float(np.mean([half for _, half in found])) / truth


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macro-runs", type=int, default=1000)
    parser.add_argument("--replications", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--queue", choices=list(truths()), action="append", help="only this one; repeatable")
    arguments = parser.parse_args(argv)
    number = arguments.macro_runs * arguments.replications
    is_fine = True
    print("| queue | theory | mean of all replications | coverage | half width |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(arguments.workers) as pool:
        lengths_file(Path(folder), oracles.geometric_quantiles(MEAN_TOKENS, 4000))
        for name, (replicate, truth) in truths().items():
            if arguments.queue and name not in arguments.queue:
                continue
            values = list(pool.map(partial(replicate, Path(folder)), range(number), chunksize=50))
            share, half = coverage(values, truth, arguments.replications)
            is_fine = is_fine and LEAST_PCT <= share <= MOST_PCT
            print(f"| {name} | {truth:.4f} | {np.mean(values):.4f} | {share:.1f} % | {half:.1f} % |", flush=True)
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
