"""What a run costs, in counts that no machine's load can change: a regression in complexity fails without timing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from cut_down import CUTS, Counted

from ttsim_des.records.arrow import numpy_column
from ttsim_des.report.rundir import write_run

RunCut = Callable[[str, str], Counted]
# A third above what is.
EVENTS_PER_CHANGE = {"tts": 2.0, "reasoning": 1.8, "chat": 3.6, "pressure": 1.4, "million": 2.0, "spec": 2.0}
EVENTS_PER_REQUEST = {"tts": 2.5, "reasoning": 2.0, "chat": 9.0, "pressure": 9.0, "million": 2.5, "spec": 2.5}


@pytest.mark.parametrize("case", CUTS)
def test_leap_and_step_write_the_same(case: str, run_cut: RunCut, bench: ModuleType, tmp_path: Path) -> None:
    digests = []
    for stepping in ("leap", "step"):
        result = run_cut(case, stepping).result
        folder = write_run(
            tmp_path / stepping, summary=result.summary, tables=result.tables, scenario_toml="", manifest={}, steps=True
        )
        digests.append({file.stem: bench.digest(file) for file in folder.glob("*.parquet")})
    assert set(digests[0]) == {"queries", "requests", "steps", "token_gaps", "drafts"}
    assert digests[0] == digests[1]


@pytest.mark.parametrize("case", CUTS)
def test_events_follow_changes_of_the_batch(case: str, run_cut: RunCut) -> None:
    counts = run_cut(case, "leap").counts
    assert counts["simpy_events"] <= EVENTS_PER_CHANGE[case] * counts["batch_changes"]
    assert counts["simpy_events"] <= EVENTS_PER_REQUEST[case] * counts["requests"]


@pytest.mark.parametrize("case", ["tts", "reasoning", "pressure"])
def test_stepping_pays_for_every_step(case: str, run_cut: RunCut) -> None:
    leap, step = run_cut(case, "leap"), run_cut(case, "step")
    assert leap.counts["batch_changes"] == step.counts["batch_changes"]
    assert step.counts["simpy_events"] > 4 * leap.counts["simpy_events"]


@pytest.mark.parametrize("case", ["tts", "reasoning"])
def test_longer_outputs_need_no_more_events(case: str, bench: ModuleType) -> None:
    """Ten times the tokens between the same number of changes."""
    from ttsim_des import api

    events = []
    for mean in (300, 3000):
        rate = f"workload.arrivals.rate_per_s={300 / mean}"
        loaded = bench.load_case(case, "leap", 1.0, [*CUTS[case][:1], f"workload.output.mean={mean}", rate])
        events.append(api.run(loaded).simpy_events)
    assert events[1] < 1.3 * events[0]


@pytest.mark.parametrize("case", ["tts", "reasoning", "million"])
def test_questions_to_the_step_model_follow_leaps(case: str, run_cut: RunCut) -> None:
    """A leap asks once, and again where its run meets a knot: seldom."""
    counted = run_cut(case, "leap")
    leaps = int((numpy_column(counted.result.tables.steps["steps"]) > 1).sum())
    assert counted.model.runs <= 1.4 * counted.counts["batch_changes"]
    assert counted.model.runs <= 1.2 * leaps


def test_pressure_is_pressure(run_cut: RunCut) -> None:
    counted = run_cut("pressure", "leap")
    assert counted.counts["preemptions"] >= counted.counts["requests"]
    assert max(numpy_column(counted.result.tables.requests["recomputed_tokens"])) > 0


def test_the_count_of_changes_is_what_it_says(run_cut: RunCut) -> None:
    """Every change happens between two steps of which one differs from the other, or at an idle engine."""
    counted = run_cut("chat", "leap")
    requests = counted.result.tables.requests
    instants = {time for name in ("queued_ns", "first_token_ns", "finish_ns") for time in requests[name].to_pylist()}
    assert counted.counts["batch_changes"] == len(instants - {-1})
    assert counted.counts["preemptions"] == 0
