"""Time the simulator on one of the cases of scenarios/bench, as `ttsim-des run` would run it.

    python tools/bench.py --case tts --json
    python tools/bench.py --case pressure --scale 0.2 --hot 25
    python tools/bench.py --table

Loads the scenario, simulates, computes all metrics and writes the run directory (to a temporary folder), counting CPU
seconds of this process. A calibration (a bare heap loop and bare SimPy events, before and after) tells how fast the
machine was meanwhile; every speed is also given as a ratio to it. `--hot` profiles instead: what took longest.
`--table` runs every case but `million` in a process of its own and prints the table of docs/performance.md, which
explains the fields.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttsim_des.api import Result
    from ttsim_des.scenario.load import LoadedScenario

CASES = ("tts", "reasoning", "chat", "pressure", "million", "spec")
SPEEDS = ("output_tokens_per_cpu_s", "requests_per_cpu_s", "batch_changes_per_cpu_s")
TARGETS = {
    "tts": ("output_tokens_per_cpu_s", 60e6, 140e6),
    "reasoning": ("output_tokens_per_cpu_s", 200e6, 500e6),
    "chat": ("requests_per_cpu_s", 15_000, 40_000),
    "pressure": ("cpu_us_per_request", 300, 120),
    "spec": ("output_tokens_per_cpu_s", 10e6, 40e6),
}
"""What each case must reach, and the goal."""
KIB_PER_MIB = 1024
HEAP_SIZE = 1000
CALIBRATION_CPU_S = 0.2


def main() -> int:
    """Run one case and print its figures."""
    parser = argparse.ArgumentParser(description="Time the simulator on a case of scenarios/bench.")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--stepping", choices=("leap", "step"), default="leap")
    parser.add_argument("--scale", type=float, default=1.0, help="simulate this share of the case's queries")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--hot", type=int, metavar="N", help="profile, and print the N functions that took longest")
    parser.add_argument("--table", action="store_true", help="all cases but million, as a Markdown table")
    arguments = parser.parse_args()
    if arguments.table:
        print_table(arguments.scale)
        return 0
    if arguments.case is None:
        parser.error("one of --case and --table is needed")

    loaded = load_case(arguments.case, arguments.stepping, arguments.scale, arguments.overrides)
    if arguments.hot:
        profile(loaded, arguments.hot)
        return 0
    figures = {"case": arguments.case, "stepping": arguments.stepping, "scale": arguments.scale, **measure(loaded)}
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {json.dumps(value)}")
    return 0


def print_table(scale: float) -> None:
    """Every case with a target, measured in a fresh process each, beside what it must reach."""
    print("| case | figure | must | goal | measured | CPU s | start-up CPU s | MB | mean batch | events / change |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    heap: list[float] = []
    for case, (field, must, goal) in TARGETS.items():
        command = [sys.executable, __file__, "--case", case, "--scale", str(scale), "--json"]
        figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        heap.append(figures["calibration"]["heap_ops_per_cpu_s"])
        per_change = figures["simpy_events"] / figures["batch_changes"]
        print(
            f"| {case} | {field} | {must:,.0f} | {goal:,.0f} | {figures[field]:,.0f} | {figures['cpu_s']:.2f} | "
            f"{figures['startup_cpu_s']:.2f} | {figures['peak_rss_mb']:.0f} | {figures['mean_batch']:.1f} | "
            f"{per_change:.2f} |",
            flush=True,
        )
    print(f"\nCalibration: {sum(heap) / len(heap) / 1e6:.2f} M heap operations per CPU second.")


def load_case(case: str, stepping: str, scale: float, overrides: list[str]) -> LoadedScenario:
    """The case's scenario with a share of its queries, and everything imported that a run needs."""
    from ttsim_des import api, assets

    path = assets.root("scenarios") / "bench" / f"{case}.toml"
    given = [f'engine.stepping="{stepping}"', *overrides]
    if scale != 1:
        queries = max(1, round(scale * api.load(path).scenario.experiment.queries))
        given = [f"experiment.queries={queries}", *given]
    return api.load(path, given)


def run_case(loaded: LoadedScenario, folder: Path) -> tuple[Result, dict[str, float]]:
    """What `ttsim-des run` does: simulate, compute all metrics, write the run directory `folder`/run; CPU s of each."""
    from ttsim_des import api

    clock_s = [time.process_time()]
    result = api.run(loaded)
    clock_s.append(time.process_time())
    assert result.summary
    clock_s.append(time.process_time())
    result.save(folder / "run")
    clock_s.append(time.process_time())
    stages = ("simulate", "metrics", "write")
    return result, {name: round(clock_s[at + 1] - clock_s[at], 3) for at, name in enumerate(stages)}


def measure(loaded: LoadedScenario) -> dict[str, Any]:
    """Run a case between two calibrations; its figures."""
    startup_cpu_s = time.process_time()
    before = calibrate()
    with tempfile.TemporaryDirectory() as folder:
        start_cpu_s = time.process_time()
        result, stages = run_case(loaded, Path(folder))
        cpu_s = time.process_time() - start_cpu_s
        peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB
        digests = {file.stem: digest(file) for file in sorted((Path(folder) / "run").glob("*.parquet"))}
    after = calibrate()
    calibration = {name: round((before[name] + after[name]) / 2) for name in before}
    counts = count(result)
    figures = {
        "output_tokens_per_cpu_s": round(counts["output_tokens"] / cpu_s),
        "requests_per_cpu_s": round(counts["requests"] / cpu_s, 1),
        "batch_changes_per_cpu_s": round(counts["batch_changes"] / cpu_s, 1),
        "cpu_us_per_request": round(1e6 * cpu_s / counts["requests"], 1),
        "cpu_s": round(cpu_s, 3),
        "stages_cpu_s": stages,
        "startup_cpu_s": round(startup_cpu_s, 3),
        "peak_rss_mb": round(peak_rss_mb, 1),
        **counts,
    }
    ratios = {
        f"{speed}/{name}": float(f"{figures[speed] / per_s:.4g}")
        for speed in SPEEDS
        for name, per_s in calibration.items()
    }
    python = " ".join(sys.version.split())  # how an interpreter was built is worth a tenth of its speed
    return {**figures, "calibration": calibration, "ratios": ratios, "digests": digests, "python": python}


def count(result: Result) -> dict[str, Any]:
    """What was simulated, from the records; none of it depends on the machine."""
    import numpy as np

    from ttsim_des.metrics.columns import column

    requests, summary = result.tables.requests, result.summary
    replica = column(requests, "replica")
    changes = 0
    for index in range(int(replica.max()) + 1):
        # A change of the batch: requests noticed, prefilled or ended at one instant; a preemption; a re-entry.
        names = ("queued_ns", "first_token_ns", "finish_ns")
        instants = np.sort(np.concatenate([column(requests, name)[replica == index] for name in names]))
        changes += int((np.diff(instants, prepend=-1) > 0).sum())
    preemptions = int(column(requests, "preemptions").sum())
    return {
        "queries": result.tables.queries.num_rows,
        "requests": requests.num_rows,
        "output_tokens": int(column(requests, "output_tokens").sum()),
        "simpy_events": result.simpy_events,
        "batch_changes": changes + 2 * preemptions,
        "mean_batch": round(summary["batch"]["time_mean_seqs"], 2),
        "preemptions": preemptions,
        "prefix_hit_rate": round(summary["prefix_cache"]["hit_share"], 4),
    }


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def calibrate() -> dict[str, float]:
    """Pushes and pops of a bare heap, and bare SimPy events with one callback, per CPU second now."""
    return {"heap_ops_per_cpu_s": heap_ops_per_cpu_s(), "simpy_events_per_cpu_s": simpy_events_per_cpu_s()}


def heap_ops_per_cpu_s() -> float:
    """Pairs of a push and a pop on a heap of tuples, per CPU second."""
    heap: list[tuple[int, int]] = [(i * 7919 % 100_003, i) for i in range(HEAP_SIZE)]
    heap.sort()
    start_s, pairs = time.process_time(), 0
    while time.process_time() - start_s < CALIBRATION_CPU_S:
        for i in range(10_000):
            heappush(heap, (heap[0][0] + i * 7919 % 100_003, i))
            heappop(heap)
        pairs += 10_000
    return pairs / (time.process_time() - start_s)


def simpy_events_per_cpu_s() -> float:
    """Events that each schedule the next, per CPU second."""
    import simpy

    env = simpy.Environment()

    def again(_event: simpy.Event) -> None:
        env.timeout(1).callbacks.append(again)

    again(env.timeout(0))
    start_s, events = time.process_time(), 0
    while time.process_time() - start_s < CALIBRATION_CPU_S:
        for _ in range(10_000):
            env.step()
        events += 10_000
    return events / (time.process_time() - start_s)


def profile(loaded: LoadedScenario, functions: int) -> None:
    """Run under cProfile (which slows calls down two- to threefold); print functions and modules by own time."""
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        profiler.enable()
        result, _ = run_case(loaded, Path(folder))
        profiler.disable()
    stats = pstats.Stats(profiler)
    stats.sort_stats("tottime").print_stats(functions)
    entries: dict[Any, Any] = stats.stats  # type: ignore[attr-defined]  # no stub
    total_s = sum(entry[2] for entry in entries.values())
    calls = sum(entry[1] for entry in entries.values())
    requests = result.tables.requests.num_rows
    own_s: dict[str, float] = {}
    calls_of: dict[str, int] = {}
    for (file, _, name), entry in entries.items():
        module = room(file, name)
        own_s[module] = own_s.get(module, 0.0) + entry[2]
        calls_of[module] = calls_of.get(module, 0) + entry[1]
    print(f"{requests} requests, {calls / requests:.0f} function calls and {1e6 * total_s / requests:.0f} us a request")
    print("own time  calls/request  module")
    for name, seconds in sorted(own_s.items(), key=lambda item: -item[1])[:functions]:
        print(f"{100 * seconds / total_s:6.1f} %  {calls_of[name] / requests:13.2f}  {name}")


def room(file: str, function: str) -> str:
    """The module that a profile entry belongs to."""
    if "ttsim_des/" in file:
        return file.rsplit("ttsim_des/", 1)[1]
    if "site-packages/" in file:
        return file.rsplit("site-packages/", 1)[1].split("/")[0]
    return f"built-in {function}" if file == "~" else Path(file).stem


if __name__ == "__main__":
    sys.exit(main())
