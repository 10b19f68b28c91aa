"""Kill a running sweep again and again at random moments, and see that nothing is lost, doubled or damaged.

    python tools/sweep_kills.py                # 200 kills
    python tools/sweep_kills.py --kills 20 --seed 3

Each kill is SIGKILL to the sweep's process group: parent and workers. Every result is counted when it is first seen; a
result that is gone, or that is written again, ends the tool with exit code 1. In the end the sweep is finished and its
table compared with that of an undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SCENARIO = (
    *("best-of-n", "--set", "experiment.queries=60", "--set", "workload.output.mean=400"),
    *("--vary", "workload.strategy.samples=1,2,4", "--vary", "cluster.replicas=1,2"),
)
ENTRY = (sys.executable, "-c", "from ttsim_des.cli import main; main()")


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, look, finish, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest-s", type=float, default=3.0, help="until a kill")
    arguments = parser.parse_args(argv)
    draw = random.Random(arguments.seed)
    replications = max(2, arguments.kills)  # enough to do for all of them
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        seen: dict[str, tuple[int, float]] = {}
        partials = 0
        for _ in range(arguments.kills):
            process = _start(killed, replications)
            time.sleep(draw.uniform(0.8, arguments.longest_s))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            found = {path.name: path for path in killed.glob("points/*.json")}
            partials += len(list(killed.glob("points/.*.partial")))
            for name, stamp in seen.items():
                if name not in found or _stamp(found[name]) != stamp:
                    print(f"FAILED: result {name} was {'lost' if name not in found else 'written again'}")
                    return 1
            seen = {name: _stamp(path) for name, path in found.items()}
        print(f"{arguments.kills} kills, {len(seen)} of {6 * replications} results, {partials} half-written files left")
        for out in (killed, whole):
            if _start(out, replications).wait():
                print(f"FAILED: the sweep in {out.name} did not end well")
                return 1
        if any(_stamp(killed / "points" / name) != stamp for name, stamp in seen.items()):
            print("FAILED: finished results were written again")
            return 1
        same = (killed / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
        print("the table is that of an undisturbed sweep" if same else "FAILED: the tables differ")
        return 0 if same else 1


def _start(out: Path, replications: int) -> subprocess.Popen[bytes]:
    command = [*ENTRY, "sweep", *SCENARIO, "--replications", str(replications), "--out", str(out)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _stamp(path: Path) -> tuple[int, float]:
    """Of a file that was replaced, another inode and time."""
    status = path.stat()
    return status.st_ino, status.st_mtime


if __name__ == "__main__":
    sys.exit(main())
