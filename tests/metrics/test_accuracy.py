"""Accuracy from record tables, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from ttsim_des import load, run
from ttsim_des.metrics.accuracy import accuracy_section
from ttsim_des.metrics.window import Window


def test_accuracy_of_four_queries_by_hand() -> None:
    """A run of best of 3 whose accuracies are counted again from its tables with plain loops."""
    result = run(load("best-of-n-prm", ["experiment.queries=25", "workload.strategy.samples=3"]))
    requests = [row for row in result.tables.requests.to_pylist() if row["answer_id"] != -2]
    queries = {row["query_id"]: row for row in result.tables.queries.to_pylist()}
    answers: dict[int, list[int]] = {}
    for row in requests:
        answers.setdefault(row["query_id"], []).append(row["answer_id"])
    assert {len(given) for given in answers.values()} == {3}
    found = result.summary["accuracy"]
    assert found["queries"] == 25
    assert found["share"] == pytest.approx(sum(row["answer_id"] == 0 for row in queries.values()) / 25)
    assert found["pass_at_1"] == pytest.approx(sum(given.count(0) / 3 for given in answers.values()) / 25)
    assert found["pass_at_n"] == pytest.approx(sum(0 in given for given in answers.values()) / 25)
    votes = 0.0
    for given in answers.values():
        counts = {each: given.count(each) for each in given if each >= 0}
        top = [each for each, count in counts.items() if count == max(counts.values())]
        votes += (0 in top) / len(top) if top else 0
    assert found["majority"] == pytest.approx(votes / 25)
    cost = result.summary["cost"]
    assert cost["solved_query_usd"] == pytest.approx(cost["query_usd"] / found["share"])
    assert result.check_laws() == []


def test_the_verifiers_gpus_are_paid_for() -> None:
    both = run(load("best-of-n-prm", ["experiment.queries=5"])).summary
    free = ["workload.strategy.verifier=", "verifier=", "experiment.queries=5"]
    alone = run(load("best-of-n-prm", free)).summary
    assert both["pools"]["verifier"]["requests"] == 40
    assert both["pools"]["verifier"]["gpu"]["busy_share"] > 0
    assert alone["pools"] == {}
    assert both["cost"]["gpu_s_per_query"] == pytest.approx(2 * both["window"]["length_s"] / 5)
    assert alone["cost"]["gpu_s_per_query"] == pytest.approx(alone["window"]["length_s"] / 5)


def test_without_outcomes_nobody_knows() -> None:
    result = run(load("best-of-n", ["experiment.queries=5"]))
    section = accuracy_section(result.tables, Window.of(result.tables, result.context))
    assert section == {
        "queries": 0,
        "share": None,
        "unanswered_share": None,
        "pass_at_1": None,
        "majority": None,
        "pass_at_n": None,
        "samples_per_query": None,
    }
    assert result.summary["cost"]["solved_query_usd"] is None


def test_manifests_name_every_input(tmp_path: Path) -> None:
    path = run(load("best-of-n-prm", ["experiment.queries=2"])).save(tmp_path / "run")
    text = (path / "manifest.json").read_text()
    for name in ("verifier.gpu", "verifier.model", "verifier.engine", "output"):
        assert f'"{name}"' in text
