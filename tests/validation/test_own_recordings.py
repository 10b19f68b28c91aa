"""Recordings by tools/record_vllm.py and tools/record_server.py: schedules exact, latencies from a sweep beside."""

import subprocess
import sys
from pathlib import Path

import pytest

from ttsim_des.validation.run import Variant, validate

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "recorded"
OWN = RECORDED / "record_vllm"

sys.path.insert(0, str(ROOT / "tools"))
import conformance  # noqa: E402


@pytest.mark.parametrize("folder", sorted(OWN.iterdir()), ids=lambda path: path.name)
def test_schedules_are_exact(folder: Path) -> None:
    (recording,) = conformance.read_runs(folder)
    replay = conformance.Replay(recording, "step")
    replay.run()
    assert replay.num_steps == len(recording.steps) > 500


def test_what_was_to_be_recorded_was() -> None:
    runs = {folder.name: next(iter(conformance.read_runs(folder))) for folder in OWN.iterdir()}
    assert sum("abort_s" in row for row in runs["cancels"].requests) >= 5
    assert sum(row["preemptions"] for row in runs["pressure"].requests) >= 20
    assert sum(row["cached_tokens"] for row in runs["fanout"].requests) > 1000
    assert {row["sample"] for row in runs["fanout"].requests} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["moderate", "fanout"])
def test_latencies_from_a_sweep_of_the_same_sitting(name: str) -> None:
    (result,) = validate(OWN / name, Variant(steps_from=OWN / f"{name}-sweep"))
    error = {metric: row["error_pct"] for metric, row in result.metrics.items()}
    assert abs(error["output_tokens_per_s"]) < 1
    assert abs(error["tpot_s.mean"]) < 7
    assert abs(error["query_s.p95" if name == "fanout" else "e2e_s.p95"]) < 12


def test_a_served_recording_is_read_and_its_client_overhead_is_not_hidden() -> None:
    (result,) = validate(RECORDED / "native" / "served-fanout", Variant(steps_from=OWN / "fanout-sweep"))
    assert len(result.recording.requests) == 80
    assert abs(result.metrics["output_tokens_per_s"]["error_pct"]) < 2
    assert -20 < result.metrics["e2e_s.mean"]["error_pct"] < -5  # A server shares the machine with its client.


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("traces/poisson-short.csv", "--queries 100 --rate-per-s 1.2 --seed 11"),
        ("tests/recorded/loads/fanout.csv", "--queries 30 --rate-per-s 0.35 --seed 12 --samples 4"),
        ("tests/recorded/loads/cancels.csv", "--queries 40 --rate-per-s 1.2 --seed 13 --cancel-every 4 --cancel-s 0.8"),
    ],
)
def test_loads_are_what_the_tool_makes(tmp_path: Path, file: str, options: str) -> None:
    shape = "--burstiness 1 --prompt-mean 120 --prompt-sigma 0.6 --output-mean 60 --output-sigma 0.5 --max-tokens 200"
    command = [sys.executable, ROOT / "tools/make_trace.py", tmp_path / "made.csv", *options.split(), *shape.split()]
    subprocess.run(command, check=True)
    assert (tmp_path / "made.csv").read_bytes() == (ROOT / file).read_bytes()
