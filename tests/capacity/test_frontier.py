"""The frontier: every combination, the same draws, and marks that are right by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ttsim_des.capacity.frontier import Point, frontier, grid, marked
from ttsim_des.cli import main
from ttsim_des.errors import InputError

CUT = ["experiment.queries=20"]


def point(accuracy: float | None, p95_s: float | None, usd: float | None, *, stable: bool = True) -> Point:
    return Point((), accuracy, p95_s, p95_s, usd, None, usd, 1.0, stable)


def test_marks_by_hand() -> None:
    points = marked(
        [
            point(0.5, 1.0, 3.0),
            point(0.6, 2.0, 2.0),  # more accurate and cheaper than the first
            point(0.6, 3.0, 2.0),  # slower than the second, as cheap
            point(0.4, 1.0, 1.0),  # less accurate than the first, as fast; the cheapest
            point(0.9, 0.1, 0.1, stable=False),  # dominates nobody
            point(None, 0.1, 0.1),
        ]
    )
    assert [each.waits_longer for each in points] == [False, False, True, True, False, False]
    assert [each.costs_more for each in points] == [True, False, False, False, False, False]


def test_a_grid_is_all_combinations() -> None:
    assert grid(["a=1,2", "b=x"]) == [("a=1", "b=x"), ("a=2", "b=x")]
    for text in ("a", "=1", "a=1,,2"):
        with pytest.raises(InputError, match="varies nothing"):
            grid([text])


def test_variants_see_the_same_questions() -> None:
    one, four = frontier("best-of-n-prm", ["workload.strategy.samples=1,4"], CUT)
    assert one.output_tokens is not None
    assert four.output_tokens == pytest.approx(4 * one.output_tokens, rel=0.3)
    assert four.accuracy >= one.accuracy
    assert four.latency_mean_s > one.latency_mean_s


def test_a_variant_that_cannot_run_stops_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"workload\.strategy\.samples"):
        frontier("best-of-n-prm", ["workload.strategy.samples=1,0"], CUT)


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    plot = tmp_path / "f.png"
    arguments = ["frontier", "best-of-n-prm", "--set", CUT[0], "--vary", "workload.strategy.samples=1,2"]
    done = CliRunner().invoke(main, [*arguments, "--json", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert plot.stat().st_size > 1000
    found = json.loads(done.output[: done.output.rindex("}") + 1])
    assert [each["variant"] for each in found["points"]] == [
        ["workload.strategy.samples=1"],
        ["workload.strategy.samples=2"],
    ]
    table = CliRunner().invoke(main, arguments).output
    assert "workload.strategy.samples=2" in table
    assert "no other is as accurate and faster" in table
