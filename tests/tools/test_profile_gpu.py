"""tools/profile_gpu.py as a user runs it; with torch (the extra `profile`) on a CPU, with a toy model."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/profile_gpu.py"
NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra `profile`")
TOY = """
hidden = 64
intermediate = 128
layers = 2
heads = 4
kv_heads = 2
head_dim = 16
vocab = 512
max_position = 512
source = "a toy"
"""
SMALL = [*("--device", "cpu", "--quick", "--max-tokens", "64", "--max-context", "128", "--max-batch", "8")]


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return path


def profile(*arguments, cwd=None):
    command = [sys.executable, TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_dry_run_measures_nothing(tmp_path):
    done = profile("Qwen3-8B", "--tp", "1,2", "--dry-run", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "decode_attention" in done.stdout
    assert "minutes (cpu)" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Qwen3-9B"], "unknown model 'Qwen3-9B'"),
        (["Qwen3-8B", "--tp", "3"], "--tp 3 does not divide the 32 heads"),
        (["Qwen3-8B", "--tp", "0"], "0 is not a positive whole number"),
        (["Qwen3-8B", "--dtypes", "fp16"], "'fp16': expected bf16 or fp8"),
        (["Qwen3-8B", "--quick", "--full"], "not allowed with"),
    ],
)
def test_bad_input_is_refused_with_a_message(arguments, message, tmp_path):
    done = profile(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_it_says_what_to_install(toy, tmp_path):
    done = profile(toy, "--out", tmp_path / "out", *SMALL)
    assert done.returncode == 2
    assert "pip install 'ttsim-des[profile]'" in done.stderr


@NEEDS_TORCH
def test_a_profile_from_here_runs_a_simulation(toy, tmp_path):
    done = profile(toy, "--tp", "1,2", "--seconds-per-point", "0.005", "--out", tmp_path / "mine", *SMALL)
    assert done.returncode == 0, done.stderr
    for told in ("gemm", "decode_attention", "all_reduce", "left out, median", "steadiness", "torch SDPA"):
        assert told in done.stdout
    settings = ["cluster.gpu=./mine", "cluster.model=./toy.toml", "cluster.tp=2", "engine.num_gpu_blocks=400"]
    settings += [
        "workload.prompt.tokens=60",
        "workload.output.mean=20",
        "workload.max_tokens=64",
    ]
    settings += ["experiment.queries=20", "workload.arrivals.rate_per_s=2", "engine.max_model_len=256"]
    sets = [part for each in settings for part in ("--set", each)]
    command = [Path(sysconfig.get_path("scripts")) / "ttsim-des", "run", "best-of-n", *sets, "--format", "json"]
    simulated = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert simulated.returncode == 0, simulated.stderr
    assert json.loads(simulated.stdout)["query"]["latency_s"]["count"] > 0


@NEEDS_TORCH
def test_an_interrupt_loses_nothing_and_nothing_is_measured_twice(toy, tmp_path):
    out = tmp_path / "mine"
    arguments = [toy, "--seconds-per-point", "0.02", "--out", out, *SMALL]
    begun = subprocess.Popen(
        [sys.executable, TOOL, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    journal, deadline = out / "measurements.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not journal.is_file() or len(journal.read_text().splitlines()) < 8):
        time.sleep(0.01)
    os.kill(begun.pid, signal.SIGINT)
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 130, said
    assert "the same command goes on from there" in said
    kept = journal.read_text().splitlines()
    assert not (out / "meta.toml").exists()
    done = profile(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"going on: {len(kept) - 1} points were measured before" in done.stderr
    lines = journal.read_text().splitlines()
    assert lines[: len(kept)] == kept
    assert set(Counter(json.dumps(json.loads(line)["point"]) for line in lines[1:]).values()) == {1}
    before = journal.read_text()
    assert profile(*arguments).returncode == 0
    assert journal.read_text() == before


@NEEDS_TORCH
def test_what_this_machine_cannot_do_is_refused(toy, tmp_path):
    import torch

    if not torch.cuda.is_available():
        done = profile(toy, "--out", tmp_path / "o", "--quick")
        assert (done.returncode, "torch sees no GPU" in done.stderr) == (2, True)
    done = profile(toy, "--out", tmp_path / "p", "--attention", "flashinfer", *SMALL)
    assert (done.returncode, "--attention flashinfer" in done.stderr) == (2, True)
    done = profile(toy, "--out", tmp_path / "q", "--dtypes", "fp8", *SMALL)
    assert (done.returncode, "fp8 products need a GPU" in done.stderr) == (2, True)
