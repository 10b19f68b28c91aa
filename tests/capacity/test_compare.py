"""`ttsim-des compare`: paired differences, verdicts, gates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from small_runs import SETS

from ttsim_des.capacity.compare import compare, parse_gates, scenario_changes
from ttsim_des.cli import main
from ttsim_des.errors import InputError


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """before, after (slower steps), again (as before), other (another seed), single (one run)."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in {
        "before": ["--replications", "4"],
        "again": ["--replications", "4"],
        "after": ["--replications", "4", "--set", "workload.strategy.samples=10"],
        "other": ["--replications", "3", "--seed", "99"],
        "single": [],
    }.items():
        told = invoke("run", "best-of-n", *SETS, *more, "--out", str(folder / name))
        assert told.exit_code == 0, told.output
    return folder


def as_json(folder: Path, first: str, second: str, *more: str) -> Any:
    return json.loads(invoke("compare", str(folder / first), str(folder / second), "--json", *more).stdout)


def test_a_run_is_the_same_as_itself_again(runs: Path) -> None:
    found = as_json(runs, "before", "again")
    assert found["paired"]
    assert found["scenario"] == {}
    assert {row["verdict"] for row in found["metrics"].values()} == {"same"}
    assert all(row["change_pct"] == 0 for row in found["metrics"].values())


def test_more_samples_wait_longer_and_it_is_sure(runs: Path) -> None:
    found = as_json(runs, "before", "after")
    assert found["scenario"] == {"workload.strategy.samples": [8, 10]}
    row = found["metrics"]["query.latency_s.mean"]
    assert row["verdict"] == "worse"
    assert row["change_pct"] > row["half_width_pct"] > 0
    assert found["metrics"]["cost.gpu_s_per_query"]["verdict"] in ("worse", "same", "unclear")
    assert as_json(runs, "after", "before")["metrics"]["query.latency_s.mean"]["verdict"] == "better"
    text = invoke("compare", str(runs / "before"), str(runs / "after")).output
    assert "workload.strategy.samples: 8 -> 10" in text
    assert "paired by replication (4)" in text
    assert "✗ worse" in text


def test_pairing_narrows_the_interval(runs: Path) -> None:
    paired = as_json(runs, "before", "after")["metrics"]["query.latency_s.mean"]["half_width_pct"]
    unpaired = as_json(runs, "before", "other")
    assert not unpaired["paired"]
    assert paired < 0.5 * unpaired["metrics"]["query.latency_s.mean"]["half_width_pct"]


def test_one_replication_has_no_interval(runs: Path) -> None:
    found = as_json(runs, "single", "after")
    assert found["paired"]
    row = found["metrics"]["query.latency_s.mean"]
    assert row["half_width_pct"] is None
    assert row["verdict"] == "unclear"
    assert "one replication has no interval" in invoke("compare", str(runs / "single"), str(runs / "after")).output


def test_gates(runs: Path) -> None:
    def code(gate: str) -> int:
        return invoke("compare", str(runs / "before"), str(runs / "after"), "--fail-if", gate).exit_code

    assert code("query.latency_s.mean > +0.5%") == 3
    assert code("query.latency_s.mean > +900%") == 0
    assert code("achieved.queries_per_s < -50%") == 0
    told = invoke("compare", str(runs / "before"), str(runs / "after"), "--fail-if", "query.latency.mean > 5%")
    assert told.exit_code == 2
    assert "did you mean 'query.latency_s.mean'" in told.output
    assert code("query.latency_s.mean") == 2


def test_missing_and_damaged_runs(runs: Path, tmp_path: Path) -> None:
    assert invoke("compare", str(runs / "before"), str(tmp_path / "none")).exit_code == 2
    (tmp_path / "bad").mkdir()
    told = invoke("compare", str(runs / "before"), str(tmp_path / "bad"))
    assert told.exit_code == 2
    assert "cannot be read" in told.output


def rows(*values: float | None) -> dict[int, dict[str, float | None]]:
    return {number: {"query.latency_s.mean": value} for number, value in enumerate(values)}


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ((10.0, 20.0, 30.0), "same"),
        ((10.02, 20.04, 30.06), "same"),
        ((11.0, 22.0, 33.0), "unclear"),
        ((12.0, 22.1, 32.2), "worse"),
        ((8.0, 17.9, 28.1), "better"),
        ((5.0, 25.0, 30.0), "unclear"),
    ],
)
def test_verdicts(second: tuple[float, ...], verdict: str) -> None:
    found = compare(rows(10.0, 20.0, 30.0), rows(*second), is_paired=True, band_pct=1.0)
    assert found["query.latency_s.mean"].verdict == verdict


def test_welch_by_hand() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0]
    found = compare(rows(*first), rows(*second), is_paired=False, band_pct=1.0)["query.latency_s.mean"]
    a, b = np.var(first, ddof=1) / 4, np.var(second, ddof=1) / 3
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 2)
    from scipy.stats import t

    assert found.half_width_pct == pytest.approx(100 / 2.5 * t.ppf(0.975, freedom) * np.sqrt(a + b))
    assert found.change_pct == pytest.approx(60)


def test_withheld_numbers_are_not_compared() -> None:
    assert compare(rows(1.0, None), rows(1.0, 2.0), is_paired=True, band_pct=1.0) == {}


def test_changes_of_scenarios() -> None:
    first, second = 'seed = 1\n[a]\nx = 1\ny = "k"\n', "seed = 2\n[a]\nx = 2\n[b]\nz = true\n"
    assert scenario_changes(first, second) == {"a.x": (1, 2), "a.y": ("k", None), "b.z": (None, True)}


def test_gates_are_refused_by_form() -> None:
    for text in ("x", "x > 5", "x >= 5%", "> 5%"):
        with pytest.raises(InputError, match="is no gate"):
            parse_gates([text])
