"""A plan against brute force by the same engine: the same choice, and nothing said without simulating that is untrue.

    python tools/plan_check.py                     # 540 candidates of the quick start, queries cut to 240
    python tools/plan_check.py --queries 600 --slo 'query.latency_s.p95 < 60'

First the plan (its time counts), in a directory of its own; then every candidate that can be deployed. Compared are the
choice, each bound with the metric that it bounds, each candidate that was told to run like another one with its own
runs, and that nothing set aside would have kept the SLOs for less. Exit code 1 at a difference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ttsim_des.capacity.candidate import USD, Candidate
from ttsim_des.capacity.executors import LocalExecutor
from ttsim_des.capacity.grid import grid
from ttsim_des.capacity.plan import Choice, choose
from ttsim_des.capacity.question import Question
from ttsim_des.capacity.slo import parse_slos

SCENARIO = "best-of-n"
VARY = (
    *("cluster.gpu=h100-sxm,h200-sxm,a100-sxm", "cluster.tp=1,2,4", "cluster.replicas=1,2,4"),
    *("engine.max_num_seqs=64,128,256,512,1024", "engine.max_num_batched_tokens=2048,4096,8192,16384"),
)
COMPARED = ("query.latency_s.p95", "request.tpot_s.mean", "steps.count", "batch.peak_running")
SLACK = 1 - 1e-9


def differences(planned: Choice, brute: Choice) -> list[str]:
    """What the plan said that brute force does not confirm."""
    found = []
    names = [None if choice.best is None else choice.best.label for choice in (planned, brute)]
    if names[0] != names[1]:
        found.append(f"chosen: {names[0]}; by brute force: {names[1]}")
    for known, told in zip(planned.candidates, brute.candidates, strict=True):
        if known.why_not.startswith(("offered", "misses")) and told.state == "holds":
            found.append(f"{known.label}: {known.why_not}, yet it keeps the SLOs")
        for metric in known.bounds:
            value, least = told.value(metric), known.at_least(metric)
            if value is not None and least is not None and value < SLACK * least:
                found.append(f"{known.label}: {metric} is {value:.6g}, below its bound {least:.6g}")
        if known.twin and _numbers(known) != _numbers(told):
            found.append(f"{known.label} does not run like {known.twin}")
    return found


def _numbers(candidate: Candidate) -> list[list[float | None]]:
    return [[run[name] for name in COMPARED] for run in candidate.runs]


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, simulate everything, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slo", default="query.latency_s.p95 < 80")
    parser.add_argument("--queries", type=int, default=240)
    parser.add_argument("--replications", type=int, default=3)
    parser.add_argument("--vary", action="append", help="instead of the 540; repeatable")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--no-brute-force", action="store_true", help="only the plan and its time")
    arguments = parser.parse_args(argv)
    variants = grid(arguments.vary or VARY)
    choices = []
    for prune in (True, False)[: 1 if arguments.no_brute_force else 2]:
        with tempfile.TemporaryDirectory() as folder, LocalExecutor(arguments.workers) as executor:
            slos = parse_slos([arguments.slo])
            overrides = (f"experiment.queries={arguments.queries}",)
            question = Question(SCENARIO, overrides, None, slos, arguments.replications, Path(folder), executor)
            start_s = time.perf_counter()
            choices.append(choose(question, variants, USD, prune=prune))
            runs = len(list(Path(folder).glob("points/*.json")))
            name = "plan" if prune else "brute force"
            best = choices[-1].best
            print(
                f"{name}: {len(variants)} candidates, {choices[-1].simulated} simulated in {runs} runs, "
                f"{time.perf_counter() - start_s:.1f} s: {None if best is None else best.label}",
                flush=True,
            )
    if arguments.no_brute_force:
        return 0
    found = differences(*choices)
    twins = sum(bool(candidate.twin) for candidate in choices[0].candidates)
    bounded = sum(bool(candidate.bounds) for candidate in choices[0].candidates)
    print(f"{bounded} candidates with bounds and {twins} that run like another one were compared")
    print("\n".join(found) if found else "no difference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
