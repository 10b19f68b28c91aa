"""The frontier and the Pareto front: every combination, the same draws, and marks that are right by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ttsim_des.capacity.candidate import GPU_SECONDS
from ttsim_des.capacity.executors import LocalExecutor
from ttsim_des.capacity.front import Point, front, frontier, marked
from ttsim_des.capacity.grid import axes, grid, needs_search, points_and_grid, read_points
from ttsim_des.capacity.plan import surveyed
from ttsim_des.capacity.question import Question
from ttsim_des.cli import main
from ttsim_des.errors import InputError

CUT = ["experiment.queries=20"]
ARRIVING = (
    *("experiment.queries=230", "experiment.kind=steady", "workload.arrivals.concurrency="),
    *("workload.arrivals.process=poisson", "workload.arrivals.rate_per_s=0.5"),
)


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


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("a=1..8", [f"a={value}" for value in range(1, 9)]),
        ("a=16..2048", ["a=16", "a=32", "a=64", "a=128", "a=256", "a=512", "a=1024", "a=2048"]),
        ("a=0.5..1.2", ["a=0.5", "a=0.6", "a=0.7", "a=0.8", "a=0.9", "a=1", "a=1.1", "a=1.2"]),
        ("a=1..3", ["a=1", "a=2", "a=3"]),
    ],
)
def test_a_range_is_tried_evenly(text: str, overrides: list[str]) -> None:
    assert [variant[0] for variant in grid([text])] == overrides


def test_more_than_two_ranges_need_a_search() -> None:
    assert not needs_search(axes(["a=1..8", "b=1..8", "c=1,2"]))
    assert needs_search(axes(["a=1..8", "b=1..8", "c=1..2"]))
    with pytest.raises(InputError, match="have no grid"):
        grid(["a=1..8", "b=1..8", "c=1..2"])
    with pytest.raises(InputError, match="empty range"):
        grid(["a=8..1"])
    with pytest.raises(InputError, match="varied twice"):
        grid(["a=1", "a=2"])


def test_points_of_a_file_with_every_combination(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("model,tp\nsmall,\nlarge,4\n")
    assert points_and_grid(["n=1,2"], read_points(tmp_path / "points.csv")) == [
        ("model=small", "n=1"),
        ("model=small", "n=2"),
        ("model=large", "tp=4", "n=1"),
        ("model=large", "tp=4", "n=2"),
    ]


def asked(executor: LocalExecutor, out: Path, replications: int = 1) -> Question:
    return Question("best-of-n-prm", tuple(CUT), None, (), replications, out, executor)


def test_variants_see_the_same_questions(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        one, four = frontier(asked(executor, tmp_path), grid(["workload.strategy.samples=1,4"]))
    assert one.output_tokens is not None
    assert four.output_tokens == pytest.approx(4 * one.output_tokens, rel=0.3)
    assert four.accuracy >= one.accuracy
    assert four.latency_mean_s > one.latency_mean_s


def test_a_variant_that_cannot_run_stops_all(tmp_path: Path) -> None:
    with LocalExecutor(1) as executor, pytest.raises(InputError, match=r"workload\.strategy\.samples"):
        frontier(asked(executor, tmp_path / "out"), grid(["workload.strategy.samples=1,0"]))
    assert not (tmp_path / "out").exists()


def test_the_front_by_hand() -> None:
    points = marked(
        [
            point(None, 1.0, 3.0),
            point(None, 2.0, 2.0),
            point(None, 2.5, 2.0),  # slower than the second, as cheap
            point(None, 3.0, 1.0),
            point(None, 4.0, 3.0),  # slower than the first, as cheap
            point(None, 0.5, 0.5, stable=False),
        ]
    )
    assert [each.on_front for each in points] == [True, True, False, True, False, False]
    with_accuracy = marked([point(0.5, 1.0, 1.0), point(0.6, 2.0, 2.0), point(0.5, 2.0, 1.5)])
    assert [each.on_front for each in with_accuracy] == [True, True, False]


def test_the_front_is_that_of_brute_force(tmp_path: Path) -> None:
    vary = ["cluster.gpu=a100-sxm,h200-sxm", "cluster.replicas=1,4", "workload.strategy.samples=1,2,4"]
    found = {}
    for prune in (True, False):
        with LocalExecutor(2) as executor:
            question = Question("best-of-n-prm", ARRIVING, None, (), 2, tmp_path / "out", executor)
            candidates = surveyed(question, grid(vary), GPU_SECONDS, prune=prune)
            found[prune] = front(question, candidates, prune=prune)
    on_front = [{each.variant for each in found[prune].points if each.on_front} for prune in (True, False)]
    assert on_front[0] == on_front[1]
    assert len(on_front[0]) >= 3
    assert any(candidate.why_not.startswith("cannot be better") for candidate in found[True].candidates)
    assert len(found[True].points) < len(found[False].points) == 12


def test_the_front_command_prints_and_draws(tmp_path: Path) -> None:
    plot = tmp_path / "f.png"
    arguments = ["plan", "best-of-n-prm", "--set", "experiment.queries=230", "--front", "--replications", "2"]
    arguments += ["--vary", "cluster.replicas=1,2", "--vary", "workload.strategy.samples=1,4"]
    arguments += ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*arguments, "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert plot.stat().st_size > 1000
    assert "on the front" in done.output
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert {tuple(each["variant"]) for each in found["points"] if each["on_front"]}
    for wrong in (["--front", "--minimise", "x"], ["--plot", "x.png", "--slo", "a.b < 1"], []):
        assert CliRunner().invoke(main, ["plan", "best-of-n-prm", *wrong]).exit_code == 2


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    plot = tmp_path / "f.png"
    arguments = ["frontier", "best-of-n-prm", "--set", CUT[0], "--vary", "workload.strategy.samples=1,2"]
    arguments += ["--out", str(tmp_path / "out")]
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
