"""All-reduce among ranks, run by torchrun: `torchrun --nproc-per-node R collectives.py POINTS.json RESULTS.jsonl cuda`.

NCCL on GPUs, in a CUDA graph and launched eagerly; gloo on a CPU, where both modes are the same call.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from profiler.points import Point
from profiler.timer import Effort, Measured, cpu_repeat, cuda_repeat, summarise


def measured_collectives(points: Sequence[Point], device: str, effort: Effort) -> Iterator[tuple[Point, Measured]]:
    """Start as many ranks as the points ask for, and yield each point as it is measured."""
    for ranks in sorted({point["ranks"] for point in points}):
        chosen = [point for point in points if point["ranks"] == ranks]
        with tempfile.TemporaryDirectory() as folder:
            asked, results = Path(folder) / "points.json", Path(folder) / "results.jsonl"
            asked.write_text(json.dumps({"points": [point.key() for point in chosen], "effort": effort.__dict__}))
            arguments = ["--standalone", f"--nproc-per-node={ranks}", __file__, str(asked), str(results), device]
            command = [sys.executable, "-m", "torch.distributed.run", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"error: all-reduce among {ranks} ranks failed:\n{done.stderr[-2000:]}")
            for point, line in zip(chosen, results.read_text().splitlines(), strict=True):
                yield point, Measured(*json.loads(line))


def _rank(asked: Path, results: Path, device: str) -> None:
    torch = importlib.import_module("torch")
    distributed = importlib.import_module("torch.distributed")
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    rank = distributed.get_rank()
    if device == "cuda":
        torch.cuda.set_device(rank)
    plan = json.loads(asked.read_text())
    effort = Effort(**plan["effort"])
    lines = []
    for key in plan["points"]:
        axes = json.loads(key)[1]
        data = torch.zeros(axes["bytes"] // 2, dtype=torch.bfloat16, device=device)
        lines.append(json.dumps(_measured(torch, distributed, data, axes["mode"] == "graph", effort)))
    if not rank:
        results.write_text("\n".join(lines) + "\n")
    distributed.destroy_process_group()


def _measured(torch: Any, distributed: Any, data: Any, graph: bool, effort: Effort) -> Measured:
    """All ranks take the same number of repeats: how many fits the time is rank 0's word."""
    distributed.all_reduce(data)
    calls = [lambda: distributed.all_reduce(data)]
    fixed = Effort(effort.precision, effort.seconds, sample_us=0)  # one call a repeat: ranks must not differ in rounds
    repeat = cuda_repeat(torch, calls, fixed, graph=graph) if data.is_cuda else cpu_repeat(calls, fixed)
    first_us = repeat()
    count = torch.tensor([min(effort.most, max(effort.least, int(effort.seconds * 1e6 / max(first_us, 1.0) / 4)))])
    count = count.to(data.device)
    distributed.broadcast(count, 0)
    samples = []
    for _ in range(int(count.item())):
        distributed.barrier()
        samples.append(repeat())
    return summarise(samples)


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
