"""The shipped scenarios, through the Python interface: laws, both ways of stepping, repeatability, cost in events."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ttsim_des import api, assets

CUT_DOWN = {
    "best-of-n": ["experiment.queries=8"],
    "chat": ["experiment.queries=80"],
    "overload": ["experiment.queries=3", "engine.num_gpu_blocks=1050"],
    "tp-sweep": ["experiment.queries=3"],
    "best-of-n-prm": ["experiment.queries=12"],
    "beam-search": ["experiment.queries=12"],
    "seed-paper": ["experiment.queries=4"],
    "speculation": ["experiment.queries=24"],
    "plan-math500": ["experiment.queries=30"],
}
"""Overrides that leave some thousands of steps."""

EVENTS_PER_REQUEST = {
    "best-of-n": 3,
    "chat": 10,
    "overload": 10,
    "tp-sweep": 8,
    "best-of-n-prm": 3,
    "beam-search": 6,
    "seed-paper": 8,
    "speculation": 12,
    "plan-math500": 8,
}
"""Bounds with some room: an arrival cuts a leap, prefills and ends, each an event or two; samples share arrivals."""


@pytest.fixture(scope="module")
def whole() -> dict[str, api.Result]:
    """Every shipped scenario as it is."""
    return {name: api.run(name) for name in CUT_DOWN}


def test_every_shipped_scenario_is_tested_here() -> None:
    assert set(assets.names("scenarios")) == set(CUT_DOWN)


def same_records(one: api.Result, other: api.Result) -> bool:
    ours, theirs = one.tables, other.tables
    return all(
        getattr(ours, name).equals(getattr(theirs, name))
        for name in ("queries", "requests", "steps", "token_gaps", "drafts")
    )


@pytest.mark.parametrize("name", CUT_DOWN)
class TestShipped:
    def test_all_laws_hold(self, name: str, whole: dict[str, api.Result]) -> None:
        result = whole[name]
        assert result.check_laws() == []
        assert set(result.tables.queries["status"].to_pylist()) == {"finished"}
        assert result.tables.queries.num_rows == result.loaded.scenario.experiment.queries

    def test_it_costs_a_few_events_a_request(self, name: str, whole: dict[str, api.Result]) -> None:
        result = whole[name]
        assert result.simpy_events <= EVENTS_PER_REQUEST[name] * result.tables.requests.num_rows

    def test_the_summary_is_json_that_says_units(self, name: str, whole: dict[str, api.Result]) -> None:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        summary = json.loads(json.dumps(whole[name].summary, allow_nan=False), parse_constant=refuse)
        assert summary["schema"] == 1
        assert summary["query"]["latency_s"]["mean"] > 0
        assert all(math.isfinite(value) for value in numbers(summary))

    def test_a_second_run_is_the_same(self, name: str) -> None:
        assert same_records(api.run(api.load(name, CUT_DOWN[name])), api.run(api.load(name, CUT_DOWN[name])))

    def test_leaping_equals_stepping(self, name: str) -> None:
        leapt, stepped = (
            api.run(api.load(name, [*CUT_DOWN[name], f"engine.stepping={stepping}"])) for stepping in ("leap", "step")
        )
        assert leapt.tables.queries.equals(stepped.tables.queries)
        assert leapt.tables.requests.equals(stepped.tables.requests)
        assert leapt.tables.steps.equals(stepped.tables.steps)
        assert leapt.tables.token_gaps.equals(stepped.tables.token_gaps)
        assert leapt.check_laws() == stepped.check_laws() == []
        assert sum(stepped.tables.steps["steps"].to_pylist()) > 1_000
        assert leapt.simpy_events < stepped.simpy_events
        if name == "overload":
            assert sum(leapt.tables.requests["preemptions"].to_pylist()) >= 5

    def test_another_seed_is_another_run(self, name: str) -> None:
        one, other = (api.run(api.load(name, CUT_DOWN[name], seed=seed)) for seed in (1, 2))
        assert not one.tables.requests["output_tokens"].equals(other.tables.requests["output_tokens"])


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_events_do_not_grow_with_tokens() -> None:
    events = {}
    for mean in (400, 4_000):
        lengths = ["workload.output.distribution=constant", f"workload.output.tokens={mean}", "workload.output.mean="]
        lengths += ["workload.output.query_sigma=", "workload.output.sample_sigma=", "workload.output.max="]
        # A tenth of the rate for ten times the tokens: the same batches, only longer.
        rate = f"workload.arrivals.rate_per_s={400 / mean}"
        events[mean] = api.run(api.load("best-of-n", [*lengths, rate, "experiment.queries=100"])).simpy_events
    assert events[4_000] == pytest.approx(events[400], rel=0.1)
    assert events[4_000] <= 4 * 800


def test_saved_tables_of_two_runs_are_the_same_bytes(tmp_path: Path) -> None:
    folders = [
        api.run(api.load("overload", [*CUT_DOWN["overload"], "output.steps=true"])).save(tmp_path / name)
        for name in ("one", "two")
    ]
    for table in ("queries", "requests", "steps"):
        one, two = ((folder / f"{table}.parquet").read_bytes() for folder in folders)
        assert one == two
    assert (folders[0] / "summary.json").read_bytes() == (folders[1] / "summary.json").read_bytes()


def test_a_run_and_its_summary_do_without_pandas() -> None:
    """It takes a fifth of a second to import, a fifth of the quick start."""
    code = (
        "import sys; from ttsim_des import load, run; run(load('best-of-n', ['experiment.queries=20'])).summary; "
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
