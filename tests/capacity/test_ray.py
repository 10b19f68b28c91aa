"""The same sweep on a Ray cluster of two worker processes on loopback: the same table, whatever dies on the way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_runs import SETS

from ttsim_des.cli import main

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
VARY = ("--vary", "workload.strategy.samples=1,2,4", "--vary", "cluster.replicas=1,2")


def invoke(out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["sweep", "best-of-n", *SETS, *VARY, *more, "--out", str(out)])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes of one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=each)
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    yield str(cluster.address)
    cluster.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    told = invoke(out, "--replications", "3", "--workers", "2")
    assert told.exit_code == 0, told.output
    return out


def same_tables(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("results.csv", "results.parquet"))


def workers() -> list[int]:
    """Processes that are running a task of ours now; Ray names them after it."""
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and b"ray::run_task" in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
        except OSError:
            continue
    return found


def test_the_table_is_that_of_one_machine(address: str, local: Path, tmp_path: Path) -> None:
    told = invoke(tmp_path / "ray", "--replications", "3", "--executor", "ray", "--address", address)
    assert told.exit_code == 0, told.output
    assert "18 runs, 0 found" in told.output
    assert same_tables(tmp_path / "ray", local)


def test_a_killed_worker_costs_a_retry_not_a_result(address: str, local: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_two() -> None:
        deadline = time.monotonic() + 60
        while len(killed) < 2 and time.monotonic() < deadline:
            for pid in workers():
                if len(killed) < 2 and pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_two)
    killer.start()
    told = invoke(tmp_path / "ray", "--replications", "3", "--executor", "ray", "--address", address)
    killer.join()
    assert len(killed) == 2
    assert told.exit_code == 0, told.output
    assert same_tables(tmp_path / "ray", local)


def test_errors_of_the_user_look_as_they_do_at_home(address: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    options = ["--executor", "ray", "--address", address]
    told = CliRunner().invoke(main, ["sweep", "best-of-n", *SETS, "--vary", "cluster.tp=1,7", *out, *options])
    assert told.exit_code == 2, told.output
    assert "cluster.tp" in told.output


def test_no_cluster_and_wrong_options(tmp_path: Path) -> None:
    for options, message in (
        (["--executor", "ray", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
        (["--executor", "ray", "--address", "nonsense"], "no Ray cluster at nonsense: not HOST:PORT"),
        (["--executor", "ray"], "needs --address"),
        (["--address", "127.0.0.1:1"], "say --executor ray"),
        (["--executor", "ray", "--address", "127.0.0.1:1", "--workers", "2"], "leave --workers out"),
    ):
        told = invoke(tmp_path / "out", *options)
        assert told.exit_code == 2, told.output
        assert message in told.output
