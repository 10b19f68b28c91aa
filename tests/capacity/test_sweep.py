"""`ttsim-des sweep`: the same table whatever happens to it on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from small_runs import SETS, SMALL

from ttsim_des.capacity import executors
from ttsim_des.capacity.executors import LocalExecutor
from ttsim_des.capacity.sweep import read_point, run_sweep
from ttsim_des.capacity.task import Content, Task, run_task, tasks_of
from ttsim_des.cli import main
from ttsim_des.errors import InputError, NotValidError

ROOT = Path(__file__).parents[2]
VARY = ("--vary", "workload.strategy.samples=1,2,4", "--vary", "cluster.replicas=1,2")


def invoke(out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["sweep", "best-of-n", *SETS, *more, "--out", str(out)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "done"
    told = invoke(out, *VARY, "--replications", "2", "--workers", "2")
    assert told.exit_code == 0, told.output
    return out


def table(out: Path) -> bytes:
    return (out / "results.csv").read_bytes()


def test_a_row_for_every_point_and_replication(finished: Path) -> None:
    rows = list(csv.DictReader((finished / "results.csv").open()))
    assert len(rows) == 12
    assert [row["workload.strategy.samples"] for row in rows] == ["1"] * 4 + ["2"] * 4 + ["4"] * 4
    assert [row["replication"] for row in rows] == ["0", "1"] * 6
    means = [float(row["query.latency_s.mean"]) for row in rows]
    assert means[0] < means[4] < means[8]  # common draws: more samples wait for a later one
    parquet = pq.read_table(finished / "results.parquet").to_pylist()
    assert [row["query.latency_s.mean"] for row in parquet] == means


def test_again_nothing_is_run_and_the_table_is_the_same(finished: Path) -> None:
    before = table(finished)
    told = invoke(finished, *VARY, "--replications", "2")
    assert "0 runs, 12 found" in told.output
    assert table(finished) == before


def test_more_points_and_replications_run_what_is_new(finished: Path, tmp_path: Path) -> None:
    told = invoke(finished, "--vary", "workload.strategy.samples=1,2,3", "--replications", "3")
    # Of 9 runs, samples 1 and 2 on one replica are there twice each.
    assert "5 runs, 4 found" in told.output
    assert [row["workload.strategy.samples"] for row in csv.DictReader((finished / "results.csv").open())] == [
        *["1"] * 3,
        *["2"] * 3,
        *["3"] * 3,
    ]


def test_the_table_does_not_depend_on_workers(finished: Path, tmp_path: Path) -> None:
    invoke(finished, *VARY, "--replications", "2")
    invoke(tmp_path / "one", *VARY, "--replications", "2", "--workers", "1")
    assert table(tmp_path / "one") == table(finished)


def test_a_strategy_source_is_part_of_the_key(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    text = (ROOT / "docs" / "strategies.md").read_text()
    code = text[text.index("```python") + 9 :]
    source.write_text(code[: code.index("```")])
    keys = []
    for _ in range(2):
        (task,) = tasks_of("best-of-n", [()], [*SMALL, f"workload.strategy.name={source}:strategy"], None, 1)
        keys.append(task.key)
        source.write_text(source.read_text() + "\n# another source\n")
    assert keys[0] != keys[1]


def test_a_file_that_changes_meanwhile_is_not_taken_for_the_one_of_the_sweep(tmp_path: Path) -> None:
    scenario = tmp_path / "mine.toml"
    scenario.write_text((ROOT / "scenarios" / "best-of-n.toml").read_text())
    (task,) = tasks_of(str(scenario), [()], SMALL, None, 1)
    assert run_task(task)["key"] == task.key
    scenario.write_text(scenario.read_text().replace("samples = 8", "samples = 2"))
    with pytest.raises(InputError, match="the scenario seen by this worker are not those of the sweep"):
        run_task(task)


def test_half_written_results_are_run_again(finished: Path, tmp_path: Path) -> None:
    invoke(finished, *VARY, "--replications", "2")
    before = table(finished)
    files = sorted((finished / "points").glob("*.json"))
    files[0].write_text(files[0].read_text()[:100])
    files[1].write_text("")
    files[2].write_text(json.dumps({"schema": 1, "key": "another", "metrics": {}}))
    (finished / "points" / ".x.partial").write_text("left by a killed worker")
    told = invoke(finished, *VARY, "--replications", "2")
    assert told.exit_code == 0
    assert table(finished) == before
    assert not list((finished / "points").glob(".*.partial"))


def test_a_killed_sweep_is_gone_on_with(tmp_path: Path, finished: Path) -> None:
    """Killed at several moments, workers and all; in the end the table is that of an undisturbed sweep."""
    out = tmp_path / "killed"
    entry = [sys.executable, "-c", "from ttsim_des.cli import main; main()"]
    command = [*entry, "sweep", "best-of-n", *SETS, *VARY, "--replications", "2", "--out", str(out)]
    for wanted in (1, 4, 8):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while len(list(out.glob("points/*.json"))) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(list(out.glob("points/*.json"))) >= wanted
    assert not (out / "results.csv").exists()
    assert invoke(out, *VARY, "--replications", "2").exit_code == 0
    invoke(finished, *VARY, "--replications", "2")
    assert table(out) == table(finished)


DIED = "TTSIM_TEST_DIED"


def die_once(task: Task) -> Content:
    """A worker that is killed in the middle of its first task of the second point."""
    marker = Path(os.environ[DIED])
    if task.variant == ("workload.strategy.samples=2",) and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_task(task)


def die_always(task: Task) -> Content:
    if task.variant == ("workload.strategy.samples=2",):
        os.kill(os.getpid(), signal.SIGKILL)
    return run_task(task)


VARIANTS = [(f"workload.strategy.samples={samples}",) for samples in (1, 2, 4)]


def run_all(out: Path, replications: int) -> list[dict[str, Any]]:
    with LocalExecutor(2) as executor:
        return run_sweep(tasks_of("best-of-n", VARIANTS, SMALL, None, replications), out, executor)


def test_a_worker_that_dies_costs_a_retry_not_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run_all(tmp_path / "fine", 2)
    monkeypatch.setenv(DIED, str(tmp_path / "died"))
    monkeypatch.setattr(executors, "run_task", die_once)
    assert run_all(tmp_path / "out", 2) == undisturbed
    assert (tmp_path / "died").exists()


def test_a_point_that_kills_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "run_task", die_always)
    with pytest.raises(NotValidError, match=r"samples=2 .*dies every time"):
        run_all(tmp_path / "out", 1)
    others = [task for task in tasks_of("best-of-n", VARIANTS, SMALL, None, 1) if "=2" not in task.variant[0]]
    assert any(read_point(tmp_path / "out" / "points", task.key) for task in others)


def test_workers_end_when_their_sweep_is_killed(tmp_path: Path) -> None:
    """The parent alone is killed: its workers end too, and its directory is free at once."""
    entry = [sys.executable, "-c", "from ttsim_des.cli import main; main()"]
    command = [*entry, "sweep", "best-of-n", *SETS, *VARY, "--replications", "50", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/points/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    told = invoke(tmp_path / "out", *VARY[:2])
    assert told.exit_code == 0, told.output
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_sweeps_do_not_share_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    hold = (
        "import sys, pathlib; from ttsim_des.capacity.sweep import _alone\n"
        "with _alone(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    told = invoke(tmp_path / "out", *VARY)
    assert told.exit_code == 2
    assert "another process sweeps" in told.output
    holder.communicate("")
    assert invoke(tmp_path / "out", *VARY[:2]).exit_code == 0


def test_points_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("workload.strategy.samples,cluster.replicas\n1,1\n4,2\n")
    told = invoke(tmp_path / "out", "--points", str(tmp_path / "points.csv"), "--json")
    found = json.loads(told.stdout)["results"]
    assert [result["variant"] for result in found] == [
        ["workload.strategy.samples=1", "cluster.replicas=1"],
        ["workload.strategy.samples=4", "cluster.replicas=2"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1\n", ":2: not as many cells"), ("a,b\n", "there is no point"), (None, "cannot be read")],
)
def test_bad_points(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "points.csv").write_text(text)
    told = invoke(tmp_path / "out", "--points", str(tmp_path / "points.csv"))
    assert told.exit_code == 2
    assert message in told.output
    assert not (tmp_path / "out").exists()


def test_bad_points_are_told_before_any_is_run(tmp_path: Path) -> None:
    told = invoke(tmp_path / "out", "--vary", "workload.strategy.samples=1,many")
    assert told.exit_code == 2
    assert "samples" in told.output
    assert not (tmp_path / "out").exists()
    assert invoke(tmp_path / "out").exit_code == 2
