"""The engine against a real vLLM: every recording, every step, both ways of stepping; and that a wrong engine fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RECORDED = REPOSITORY / "tests" / "recorded" / "vllm_cpu"
GOLDEN = sorted(path for path in (RECORDED / "golden").iterdir() if path.is_dir())
MEASURED = sorted(path for path in RECORDED.iterdir() if path.is_dir() and path.name != "golden")

sys.path.insert(0, str(REPOSITORY / "tools"))
import conformance  # noqa: E402


def exact(folder: Path, stepping: conformance.Stepping = "step") -> bool:
    recordings = list(conformance.read_runs(folder))
    assert recordings
    for recording in recordings:
        try:
            conformance.Replay(recording, stepping).run()
        except conformance.MismatchError:
            return False
    return True


@pytest.mark.parametrize("folder", GOLDEN + MEASURED, ids=lambda path: path.name)
def test_schedule_equals_the_recorded_one(folder: Path) -> None:
    assert exact(folder)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_leaping_gives_the_recorded_steps_too(folder: Path) -> None:
    assert exact(folder, "leap")


def test_leaping_makes_far_fewer_plans_than_steps() -> None:
    (recording,) = conformance.read_runs(RECORDED / "golden" / "poisson")
    replay = conformance.Replay(recording, "leap")
    replay.run()
    assert replay.num_plans < 0.35 * replay.num_steps


def test_command_prints_a_verdict_and_fails_on_a_difference(tmp_path: Path) -> None:
    folder = tmp_path / "golden" / "fanout16"
    folder.mkdir(parents=True)
    for file in (RECORDED / "golden" / "fanout16").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, str(REPOSITORY / "tools" / "conformance.py"), str(folder)]
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "1 of 1 recordings exact")
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"block_size": 16', '"block_size": 32'))
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout.splitlines()[-1]) == (1, "0 of 1 recordings exact")
    assert "DIFFERS at step" in bad.stdout
