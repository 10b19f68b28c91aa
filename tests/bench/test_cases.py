"""The bench cases say what they claim, and stay out of the list of bundled scenarios."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cut_down import CUTS, TOOL

from ttsim_des import api, assets
from ttsim_des.deployment import deploy
from ttsim_des.scenario.schema import Scenario

FOLDER = assets.root("scenarios") / "bench"


def case(name: str) -> Scenario:
    return api.load(FOLDER / f"{name}.toml").scenario


def test_every_case_has_its_file() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.toml")) == sorted(CUTS)
    assert "tts" not in assets.names("scenarios")


@pytest.mark.parametrize("name", CUTS)
def test_all_run_on_the_same_engine(name: str) -> None:
    scenario = case(name)
    deployed = deploy(scenario, FOLDER)
    assert (scenario.cluster.gpu, scenario.cluster.model) == ("h200-sxm", "DeepSeek-R1-Distill-Qwen-7B")
    assert deployed.engine_config.async_scheduling
    assert deployed.engine_config.enable_prefix_caching
    assert scenario.latency.unequal_contexts
    assert scenario.latency.model == "kernels"


def test_sizes() -> None:
    strategies = {name: case(name).workload.strategy.samples for name in CUTS}
    assert strategies == {"tts": 8, "reasoning": 16, "chat": 1, "pressure": 8, "million": 8, "spec": 8}
    assert case("million").experiment.queries == 1_000_000
    blocks = deploy(case("tts"), FOLDER).engine_config.num_gpu_blocks
    assert deploy(case("pressure"), FOLDER).engine_config.num_gpu_blocks == blocks // 10
    tts, million, pressure = (case(name).workload for name in ("tts", "million", "pressure"))
    assert tts == million
    assert tts.output == pressure.output
    assert tts.prompt == pressure.prompt


def test_tool_prints_one_line_of_json() -> None:
    command = [sys.executable, str(TOOL), "--case", "chat", "--scale", "0.002", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    figures = json.loads(done.stdout)
    wanted = (
        "output_tokens_per_cpu_s requests_per_cpu_s cpu_s startup_cpu_s peak_rss_mb simpy_events batch_changes python"
    )
    for field in [*wanted.split(), "mean_batch", "preemptions", "prefix_hit_rate", "digests", "calibration", "ratios"]:
        assert figures[field] is not None
    assert figures["requests"] == 80
    assert figures["output_tokens"] == 80 * 128
    assert set(figures["digests"]) == {"queries", "requests", "steps", "token_gaps", "drafts"}
    assert set(figures["calibration"]) == {"heap_ops_per_cpu_s", "simpy_events_per_cpu_s"}
