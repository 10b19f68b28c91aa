"""Does leaping leave the same records as stepping? Random variations of the shipped scenarios say.

    python tools/stepping.py --runs 100 --seed 1

`tools/differential.py` compares with an oracle too, but on small worlds with step models of their own and one pool.
Here are measured kernels, verifiers' pools, drafters, all strategies and long texts. Prints how often what happened,
and a last line with the verdict; at a difference the command that shows it, and exit code 1.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ttsim_des import api, assets
from ttsim_des.errors import InputError, NotValidError

TABLES = ("queries", "requests", "steps", "token_gaps", "drafts")
Choice = tuple[float, str, Sequence[Any]]
CHOICES: tuple[Choice, ...] = (
    (1.0, "experiment.queries", range(3, 15)),
    (1.0, "workload.max_tokens", (64, 300, 1000, 8000)),
    (0.5, "workload.strategy.samples", (1, 2, 4, 16)),
    (0.3, "workload.prompt.tokens", (16, 64, 100, 3000)),
    (0.5, "cluster.replicas", (1, 2, 3)),
    (0.3, "cluster.router", ("round_robin", "least_loaded", "query_affinity")),
    (0.3, "cluster.gpu", ("a100-sxm", "h100-sxm", "h200-sxm", "l40s")),
    (0.3, "cluster.tp", (1, 2, 4)),
    (0.5, "engine.async_scheduling", ("true", "false")),
    (0.4, "engine.enable_prefix_caching", ("true", "false")),
    (0.2, "engine.scheduler_reserve_full_isl", ("false",)),
    (0.2, "engine.watermark", (0, 0.01, 0.05)),
    (0.5, "engine.max_num_seqs", (1, 2, 4, 16, 64, 256)),
    (0.5, "engine.max_num_batched_tokens", (64, 256, 2048, 8192)),
    (0.3, "engine.long_prefill_token_threshold", (16, 64, 512)),
    (0.5, "engine.num_gpu_blocks", (100, 300, 1200, 20_000)),
    (0.3, "engine.block_size", (8, 16, 32)),
    (0.3, "engine.max_model_len", (4096, 8192, 16_384)),
    (0.3, "engine.scheduling_policy", ("fcfs", "priority")),
    (0.3, "latency.unequal_contexts", ("true", "false")),
    (0.3, "frontend.ingest_s", (0, 0.0005, 0.01)),
    (0.3, "client.turnaround_s", (0, 0.001, 0.05)),
)
"""How often a key is set, and to one of which values."""
STRATEGIES: tuple[tuple[str, ...], ...] = (
    ("name=single", "samples=1"),
    ("name=self_consistency",),
    ("name=adaptive_consistency", "wave=2", "threshold=0.9"),
    ("name=first_finish", "first=2"),
    ("name=sequential_revision", "rounds=3", "append_tokens=40"),
    ("name=agent_loop", "rounds=3", "append_tokens=40", "think_s=0.3"),
)
DRAFTERS = ("eagle3", "mtp", "medusa", "ngram")


def main() -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="how many variations (default 100)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="which ones (default 1)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    rng, counts, wrong = random.Random(arguments.seed), Counter[str](), 0
    while counts["compared"] < arguments.runs:
        name, overrides, seed = rng.choice(assets.names("scenarios")), variation(rng), rng.randrange(1, 1 << 20)
        try:
            leap, step = (records(name, overrides, seed, stepping) for stepping in ("leap", "step"))
        except InputError:
            counts["variations that make no scenario"] += 1
            continue
        if leap is None and step is None:
            counts["variations that never end"] += 1
            continue
        counts["compared"] += 1
        if leap is None or step is None:
            wrong += 1
            print("one of leap and step never ends:")
            print(command(name, overrides, seed))
            continue
        counts[f"variations of {name}"] += 1
        counts["with preemptions"] += any(leap["requests"]["preemptions"].to_pylist())
        counts["with drafts"] += leap["drafts"].num_rows > 0
        counts["across the domain's edge"] += len(leap["steps"]["in_domain"].unique()) > 1
        differing = [table for table in TABLES if not leap[table].equals(step[table])]
        if differing:
            wrong += 1
            print(f"{', '.join(differing)} differ from those with engine.stepping=step:")
            print(command(name, overrides, seed))
    print("\n".join(f"{what}: {count}" for what, count in sorted(counts.items())))
    print(f"DIFFERENCES in {wrong} of {arguments.runs}" if wrong else f"{arguments.runs} variations: leap = step")
    return 1 if wrong else 0


def variation(rng: random.Random) -> list[str]:
    """Overrides for a scenario; not every scenario takes them all."""
    overrides = ["experiment.kind=terminating", "experiment.warmup_fraction=0"]
    overrides += [f"{key}={rng.choice(values)}" for share, key, values in CHOICES if rng.random() < share]
    if rng.random() < 0.4:
        overrides += ["workload.arrivals.process=poisson", f"workload.arrivals.rate_per_s={rng.choice((0.1, 1, 10))}"]
    if rng.random() < 0.4:
        overrides += [f"workload.strategy.{setting}" for setting in rng.choice(STRATEGIES)]
    if rng.random() < 0.3:
        drafting = [f"method={rng.choice(DRAFTERS)}", f"num_speculative_tokens={rng.choice((1, 3, 5))}"]
        drafting += ["acceptance.process=iid", "acceptance.rate=0.6"]
        overrides += [f"engine.speculative.{setting}" for setting in drafting]
    return overrides


def command(name: str, overrides: Sequence[str], seed: int) -> str:
    """What a user would type to see this variation."""
    given = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["ttsim-des", "run", name, "--seed", str(seed), *given])


def records(name: str, overrides: Sequence[str], seed: int, stepping: str) -> dict[str, pa.Table] | None:
    """All record tables of a run; None where its requests preempt each other for ever, as in the real engine.

    Raises InputError where this is no scenario, NotValidError where any other invariant breaks.
    """
    loaded = api.load(name, [*overrides, f"engine.stepping={stepping}"], seed)
    try:
        tables = api.run(loaded).tables
    except NotValidError as error:
        if "preemptions without a single token" in str(error):
            return None
        raise
    found = {table: getattr(tables, table) for table in TABLES}
    return {table: each if isinstance(each, pa.Table) else each.to_table() for table, each in found.items()}


if __name__ == "__main__":
    sys.exit(main())
