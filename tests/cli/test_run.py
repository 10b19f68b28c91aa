"""`run` and what follows it, end to end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ttsim_des.assets import names
from ttsim_des.cli import main
from ttsim_des.scenario.load import load_scenario

SMALL = ("--set", "experiment.queries=12", "--set", "workload.output.mean=300", "--set", "workload.output.max=600")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("name", names("scenarios"))
def test_shipped_scenarios_run_and_obey_every_law(name: str):
    queries = {"chat": 300, "overload": 12, "tp-sweep": 10}.get(name, 40)
    result = cli("run", name, "--check", "--set", f"experiment.queries={queries}")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{name} (seed 1)\n")
    assert f"run directory: runs/{name}" in result.stderr


def test_json_is_the_saved_summary_and_the_same_every_time():
    first = cli("run", "best-of-n", *SMALL, "--format", "json", "--out", "a")
    second = cli("run", "best-of-n", *SMALL, "--format", "json", "--out", "b")
    assert first.exit_code == second.exit_code == 0, first.stderr
    assert first.stdout == second.stdout == Path("a/summary.json").read_text()
    assert json.loads(first.stdout)["query"]["latency_s"]["mean"] > 0
    for table in ("queries.parquet", "requests.parquet"):
        assert Path("a", table).read_bytes() == Path("b", table).read_bytes()


def test_a_different_seed_changes_the_result():
    one = cli("run", "best-of-n", *SMALL, "--seed", "1", "--format", "json")
    two = cli("run", "best-of-n", *SMALL, "--seed", "2", "--format", "json")
    assert json.loads(one.stdout)["query"]["latency_s"] != json.loads(two.stdout)["query"]["latency_s"]


def test_the_saved_scenario_runs_to_the_same_summary():
    cli("run", "best-of-n", *SMALL, "--seed", "5", "--out", "a")
    again = cli("run", "a/scenario.toml", "--out", "b")
    assert again.exit_code == 0, again.stderr
    assert Path("a/summary.json").read_bytes() == Path("b/summary.json").read_bytes()
    assert load_scenario("a/scenario.toml").scenario == load_scenario("b/scenario.toml").scenario


def test_explain_and_figures_follow_a_run():
    assert cli("run", "best-of-n", *SMALL, "--set", "output.steps=true", "--out", "a").exit_code == 0
    told = cli("explain", "a", "--query", "3")
    assert told.exit_code == 0
    assert told.stdout.startswith("Query 3: finished, 8 requests")
    drawn = cli("figures", "a")
    assert drawn.exit_code == 0, drawn.stderr
    assert drawn.stdout.split() == sorted(str(path) for path in Path("a/figures").iterdir())
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in drawn.stdout.split())


def test_explain_and_figures_refuse_what_is_no_run():
    for arguments in (("explain", "nowhere", "--query", "0"), ("figures", "nowhere")):
        result = cli(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: nowhere: ")
    cli("run", "best-of-n", *SMALL, "--out", "a")
    assert cli("explain", "a", "--query", "999").exit_code == 2
    Path("a/queries.parquet").write_bytes(Path("a/queries.parquet").read_bytes()[:200])
    result = cli("figures", "a")
    assert result.exit_code == 2
    assert "damaged or truncated" in result.stderr


def test_a_growing_queue_is_reported_and_ends_with_4():
    load = ("--set", "workload.arrivals.rate_per_s=500", "--set", "engine.max_num_seqs=8")
    result = cli("run", "chat", *load, "--set", "experiment.queries=400", "--format", "json")
    assert result.exit_code == 4, result.stderr
    assert json.loads(result.stdout)["stability"]["stable"] is False
    assert "the queue grows without bound" in result.stderr


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        (["cluster.model=DeepSeek-R1-Distil-Qwen-7B"], "cluster.model", "did you mean 'DeepSeek-R1-Distill-Qwen-7B'?"),
        (["cluster.gpu=h200_sxm"], "cluster.gpu", "did you mean 'h200-sxm'?"),
        (["cluster.engine=vllm-0.33"], "cluster.engine", "did you mean 'vllm-0.32'?"),
        (["cluster.tp=3"], "cluster.tp", "28 query heads"),
        (["cluster.model=nowhere/config.json"], "cluster.model", "nowhere/config.json"),
        (["experiment.queries=1_000_000_000"], "limits.requests", "8,000,000,000 requests"),
        (["limits.output_tokens=1000"], "limits.output_tokens=1000", "output tokens"),
        (["workload.arrivals={process='trace', file='none.csv'}"], "workload.arrivals", "none.csv"),
        (["workload.output={distribution='table', file='x.parquet', column='n'}"], "workload.output", "x.parquet"),
        (["engine.num_gpu_blocks=10"], "engine.num_gpu_blocks=10", "KV blocks"),
        (["engine.max_model_len=100"], "engine.max_model_len=100", "max_model_len = 100"),
        (["cluster.model=Qwen3-32B", "cluster.gpu=a100-sxm", "engine.gpu_memory_utilization=0.5"], "", "does not fit"),
    ],
)
def test_what_cannot_run_is_refused_by_run_and_check_alike(overrides: list[str], where: str, message: str):
    Path("x.parquet").write_bytes(b"PAR1 this is not the end of it")
    options = [part for override in overrides for part in ("--set", override)]
    for command in ("run", "check"):
        result = cli(command, "best-of-n", *options)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert where in result.stderr
        assert message in result.stderr
        assert not Path("runs").exists()


def test_an_interrupted_run_leaves_nothing_and_ends_with_130(tmp_path: Path):
    code = "import sys; from ttsim_des.cli import main; main(sys.argv[1:])"
    arguments = [sys.executable, "-c", code, "run", "best-of-n", "--set", "experiment.queries=100000"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ})
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_run_beyond_the_clock_ends_with_a_message_and_nothing_written(tmp_path: Path) -> None:
    out = tmp_path / "late"
    result = cli("run", "best-of-n", *SMALL, "--set", "frontend.ingest_s=1e9", "--out", str(out))
    assert (result.exit_code, out.exists()) == (4, False)
    assert "146 years" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_query_id_beyond_any_is_refused(tmp_path: Path) -> None:
    assert cli("explain", str(tmp_path), "--query", str(2**63)).exit_code == 2


def test_a_run_directory_whose_figures_were_interrupted_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ttsim_des.report.figures as figures
    from ttsim_des import load, run

    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw", interrupted)
    result = run(load("best-of-n", ["experiment.queries=20"]))
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "run", figures=True)
    assert not (tmp_path / "run").exists()
