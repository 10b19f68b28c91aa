"""Independent replications: reproducible, apart from each other, with intervals that hold what they promise."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from small_runs import SETS, SMALL

from ttsim_des import api
from ttsim_des.capacity.replications import Interval, Replication, intervals, mser5, replicate, warmup_advice
from ttsim_des.cli import main

ROOT = Path(__file__).parents[2]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def run_small(out: Path, *more: str) -> Result:
    return invoke("run", "best-of-n", *SETS, "--out", str(out), *more)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "replications.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_replications_are_other_worlds_and_the_first_is_the_plain_run(tmp_path: Path) -> None:
    assert run_small(tmp_path / "many", "--replications", "3").exit_code == 0
    rows = rows_of(tmp_path / "many")
    assert [row["replication"] for row in rows] == ["0", "1", "2"]
    means = [float(row["query.latency_s.mean"]) for row in rows]
    assert len(set(means)) == 3
    assert run_small(tmp_path / "one").exit_code == 0
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["query"]["latency_s"]["mean"] == means[0]
    told = json.loads((tmp_path / "many" / "intervals.json").read_text())["intervals"]["query.latency_s.mean"]
    assert told["mean"] == pytest.approx(np.mean(means))
    # Student's t with 2 degrees of freedom, 97.5 %.
    assert told["half_width"] == pytest.approx(4.302653 * np.std(means, ddof=1) / math.sqrt(3), rel=1e-5)


def test_the_result_does_not_depend_on_workers() -> None:
    found = [replicate("best-of-n", SMALL, count=4, workers=workers) for workers in (1, 2, 3)]
    for other in found[1:]:
        assert [each.metrics for each in other] == [each.metrics for each in found[0]]
        assert all((a.latencies_s == b.latencies_s).all() for a, b in zip(other, found[0], strict=True))


def test_saved_runs_of_a_replication_say_which(tmp_path: Path) -> None:
    result = api.run(api.load("best-of-n", SMALL), replication=2)
    manifest = json.loads((result.save(tmp_path / "run") / "manifest.json").read_text())
    assert manifest["replication"] == 2


def test_precision_stops_when_it_is_reached(tmp_path: Path) -> None:
    told = run_small(tmp_path / "loose", "--precision", "30%")
    assert told.exit_code == 0
    loose = len(rows_of(tmp_path / "loose"))
    assert loose == 5
    run_small(tmp_path / "tight", "--precision", "request.tpot_s.mean=1%", "--max-replications", "40")
    tight = rows_of(tmp_path / "tight")
    content = json.loads((tmp_path / "tight" / "intervals.json").read_text())
    interval = content["intervals"]["request.tpot_s.mean"]
    assert content["precision"]["reached"] == (interval["half_width"] <= 0.01 * interval["mean"])
    assert 5 <= len(tight) <= 40
    if len(tight) > 5:  # One fewer was not enough.
        before = [float(row["request.tpot_s.mean"]) for row in tight[:-1]]
        relative = 1.96 * np.std(before, ddof=1) / math.sqrt(len(before)) / np.mean(before)
        assert relative > 0.007
    capped = run_small(tmp_path / "capped", "--precision", "0.001%", "--max-replications", "6")
    assert len(rows_of(tmp_path / "capped")) == 6
    assert "NOT reached" in capped.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "2"], "is no precision"),
        (["--precision", "0%"], "is no precision"),
        (["--precision", "query.latency.mean=2%"], "did you mean 'query.latency_s.mean'"),
        (["--replications", "0"], "0 is not in the range"),
        (["--replications", "2", "--figures"], "for one run"),
    ],
)
def test_bad_options(tmp_path: Path, options: list[str], message: str) -> None:
    told = run_small(tmp_path / "run", *options)
    assert told.exit_code == 2
    assert message in told.output
    assert not (tmp_path / "run").exists()


def test_a_growing_queue_withholds_latencies(tmp_path: Path) -> None:
    told = run_small(tmp_path / "run", "--replications", "2", "--set", "workload.arrivals.rate_per_s=3000")
    if "grew without bound" not in told.output:
        told = invoke(
            *("run", "best-of-n", "--replications", "2", "--set", "workload.arrivals.rate_per_s=3"),
            *("--set", "engine.max_num_seqs=8", "--set", "experiment.queries=200", "--out", str(tmp_path / "other")),
        )
    assert told.exit_code == 4
    assert "grew without bound in 2 replications" in told.output
    assert "query latency" not in told.output


def replication(number: int, value: float | None, latencies: Any = ()) -> Replication:
    return Replication(number, {"x": value, "y": 1.0}, True, np.asarray(latencies, dtype=np.float64))


def test_intervals_need_every_replication() -> None:
    found = intervals([replication(0, 1.0), replication(1, None)])
    assert set(found) == {"y"}
    assert found["y"] == Interval(1.0, 0.0, 2)
    (alone,) = (intervals([replication(0, 3.0)])["x"],)
    assert alone.half_width == math.inf


def test_mser5_finds_the_transient() -> None:
    rng = np.random.default_rng(1)
    settled = rng.normal(10, 1, 1000)
    assert mser5(settled) <= 100
    ramp = np.concatenate([np.linspace(0, 10, 200), settled])
    assert 150 <= mser5(ramp) <= 230
    assert mser5(np.arange(9.0)) == 0


def test_warm_up_advice_is_on_the_average() -> None:
    rng = np.random.default_rng(2)
    runs = [
        replication(number, 1.0, np.concatenate([np.linspace(0, 5, 100), rng.normal(5, 4, 900)]))
        for number in range(20)
    ]
    assert warmup_advice(runs) == pytest.approx(0.08, abs=0.04)
    assert warmup_advice([replication(0, 1.0, [1.0, 2.0])]) is None


def test_coverage_of_nominal_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small version of tools/coverage.py: its full result is in docs/statistics.md."""
    sys.path.insert(0, str(ROOT / "tools"))
    import coverage

    monkeypatch.setattr(coverage, "QUERIES", 150)
    monkeypatch.setattr(coverage, "WARMUP", 30)
    replications = 8
    truth = coverage.truths()["M/D/1"][1]
    values = [coverage.md1(Path(), number) for number in range(40 * replications)]
    share, half = coverage.coverage(values, truth, replications)
    assert share >= 82.5  # 95 % of 40 but for a chance of one in 500; a normal quantile in place of t gives some 90 %.
    assert 5 < half < 60
    wrong, _ = coverage.coverage(values, 1.4 * truth, replications)
    assert wrong < 60
