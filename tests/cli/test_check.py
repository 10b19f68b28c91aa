"""`check`: everything that is wrong at once, or what would run."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ttsim_des.assets import names
from ttsim_des.cli import main


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


@pytest.mark.parametrize("name", names("scenarios"))
def test_shipped_scenarios_are_right(name: str):
    result = cli(name)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{name}: nothing is wrong with it\n")
    assert max(map(len, result.stdout.splitlines())) <= 100
    again = json.loads(cli(name, "--format", "json").stdout)
    assert again["schema"] == 1


def test_json_says_what_was_taken_and_from_where():
    check = json.loads(cli("best-of-n", "--set", "engine.max_num_seqs=64", "--format", "json").stdout)
    settings = {setting["name"]: (setting["value"], setting["origin"]) for setting in check["engine"]["settings"]}
    assert settings["max_num_seqs"] == (64, "scenario")
    assert settings["block_size"] == (16, "vllm-0.32")
    rows = {row["name"]: row["value"] for row in check["memory"]}
    assert rows["num_gpu_blocks"] == int(rows["left for KV blocks"] * 2**30 // rows["KV bytes a block"])
    assert check["work"]["requests"] == 8 * check["work"]["queries"]
    load = check["load"]
    assert load["best_batch"] <= 64
    assert load["share"] == pytest.approx(load["offered_output_tokens_per_s"] / load["best_output_tokens_per_s"])


def test_load_above_the_bound_is_a_warning():
    assert "no queue is stable" not in cli("best-of-n").stdout
    result = cli("best-of-n", "--set", "workload.arrivals.rate_per_s=5")
    assert result.exit_code == 0
    assert "warning: offered load is " in result.stdout
    assert "no queue is stable" in result.stdout


def test_problems_of_every_layer_come_at_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(
        """\
schema = 1
name = "s"
sede = 2

[workload]
max_tokens = 100
prompt = { distribution = "table", file = "lengths.csv", column = "tokens" }
output = { distribution = "constant", tokens = 10 }

[workload.arrivals]
process = "gamma"
rate_per_s = 1

[cluster]
gpu = "h200"
model = "Qwen2.5-7"

[slo]
ttft_s = "fast"
"""
    )
    lines = cli("s.toml").stderr.splitlines()
    assert [line.split(": ")[1:3] for line in lines[:-1]] == [
        ["s.toml:3:1", "sede"],
        ["s.toml:7:36", "workload.prompt.file"],
        ["s.toml:10:2", "workload.arrivals.burstiness"],
        ["s.toml:15:1", "cluster.gpu"],
        ["s.toml:16:1", "cluster.model"],
        ["s.toml:19:1", "slo.ttft_s"],
    ]
    assert lines[-1] == "6 problems"


def test_check_does_not_import_what_draws_or_simulates():
    code = (
        "import sys\n"
        "from ttsim_des.cli import main\n"
        "try: main(['check', 'best-of-n'])\n"
        "finally: print('heavy:', [n for n in ('simpy', 'pandas', 'seaborn', 'matplotlib') if n in sys.modules])\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("heavy: []\n"), done.stdout[-500:] + done.stderr
