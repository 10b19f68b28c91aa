"""Write the steps of a recording with speculative decoding as a table for `ttsim-des fit acceptance`.

    python tools/draft_steps.py tests/recorded/vllm_cpu/s6_spec --run _ngram_k3 steps.csv

Of every request: how many drafts each step verified, how many of them were accepted, and how many output tokens were
known before it. Steps that verified no draft count too: they tell how often an n-gram drafter has nothing to offer.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from ttsim_des.errors import InputError
from ttsim_des.recordings.vllm_cpu import RunFiles, judged_steps, read_runs


def main(arguments: list[str] | None = None) -> int:
    """Write the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="RECORDING")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--run", default="", help="of several runs in a folder: the suffix of its files")
    options = parser.parse_args(arguments)
    try:
        run = _run(options.folder, options.run)
    except InputError as error:
        raise SystemExit(str(error)) from None
    rows = sorted(judged_steps(run))
    if not rows:
        raise SystemExit(f"{run.name}: no step verified a draft")
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["stream", "output_tokens", "drafts", "accepted"])
        writer.writerows(rows)
    print(f"{options.out}: {len(rows)} steps of {len({row[0] for row in rows})} requests")
    return 0


def _run(folder: Path, suffix: str) -> RunFiles:
    runs = [run for run in read_runs(folder) if run.name.endswith(suffix)]
    if len(runs) != 1:
        names = ", ".join(run.name for run in read_runs(folder))
        raise SystemExit(f"{len(runs)} runs end with {suffix!r}; there are {names}")
    return runs[0]


if __name__ == "__main__":
    sys.exit(main())
