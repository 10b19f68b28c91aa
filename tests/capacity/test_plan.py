"""`ttsim-des plan`: the choice of brute force for less work, and the edge of what a load may be."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ttsim_des.capacity import plan
from ttsim_des.capacity.frontier import grid
from ttsim_des.capacity.slo import Slo, parse_slos, worst
from ttsim_des.cli import main
from ttsim_des.errors import InputError

SMALL = [
    *("experiment.queries=240", "workload.output.mean=200", "workload.max_tokens=1000"),
    "workload.arrivals.rate_per_s=12",
]
SETS = [part for change in SMALL for part in ("--set", change)]
VARY = ["cluster.gpu=a100-sxm,h200-sxm", "cluster.replicas=1,2,4", "engine.max_num_seqs=32,256"]
SLOS = ("query.latency_s.p95 < 6",)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", "best-of-n", *SETS, *arguments])


def chosen(out: Path, *, prune: bool, slos: tuple[str, ...] = SLOS, vary: list[str] = VARY) -> plan.Choice:
    return plan.choose(
        "best-of-n", grid(vary), parse_slos(slos), SMALL, None, out, replications=3, workers=2, prune=prune
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan") / "results"


def test_pruning_changes_the_work_and_not_the_choice(results: Path) -> None:
    pruned, brute = chosen(results, prune=True), chosen(results, prune=False)
    assert brute.best is not None
    assert pruned.best is not None
    assert pruned.best.variant == brute.best.variant
    assert brute.simulated == len(brute.candidates) == 12
    assert pruned.simulated <= 0.6 * brute.simulated
    reasons = [candidate.why_not for candidate in pruned.candidates]
    assert any(reason.startswith("offered ") for reason in reasons)
    assert any(reason.startswith("cannot be cheaper") for reason in reasons)


def test_bounds_are_bounds(results: Path) -> None:
    """What was pruned, simulated after all, is what the bound said."""
    for candidate in chosen(results, prune=False).candidates:
        value = candidate.mean(plan.USD)
        if candidate.bound is not None and value is not None:
            assert candidate.bound <= value
        if candidate.offered_share is not None and candidate.offered_share > 1:
            assert candidate.state != "holds"


def test_what_cannot_be_deployed_is_told_and_the_rest_is_chosen_from(tmp_path: Path) -> None:
    vary = ["cluster.gpu=h200-sxm", "cluster.tp=1,7"]
    found = chosen(tmp_path / "out", prune=True, vary=vary)
    assert found.best is not None
    assert found.best.variant[1] == "cluster.tp=1"
    assert "7" in found.candidates[1].why_not
    with pytest.raises(InputError, match="no variant can be deployed"):
        chosen(tmp_path / "out", prune=True, vary=["cluster.tp=7"])


def test_a_gpu_without_a_price_is_not_chosen_by_price(tmp_path: Path) -> None:
    vary = ["cluster.gpu=b200-sxm,h200-sxm", "cluster.replicas=2"]
    found = chosen(tmp_path / "out", prune=True, vary=vary)
    assert "set cluster.gpu_hour_usd" in found.candidates[0].why_not
    assert found.best is found.candidates[1]


def test_an_objective_without_a_bound_is_chosen_by_simulation(results: Path) -> None:
    found = plan.choose(
        *("best-of-n", grid(["cluster.replicas=1,2", "engine.max_num_seqs=64,256"]), parse_slos(SLOS), SMALL, None),
        results,
        objective="query.latency_s.mean",
        replications=3,
        workers=2,
    )
    assert found.best is not None
    assert found.best.variant == ("cluster.replicas=2", "engine.max_num_seqs=256")
    assert found.simulated == sum(not candidate.why_not.startswith("offered") for candidate in found.candidates) >= 2


def test_the_command_prints_the_choice_and_says_when_there_is_none(results: Path) -> None:
    vary = ["--vary", "cluster.replicas=1,2", "--vary", "engine.max_num_seqs=64,256", "--replications", "3"]
    told = invoke("--slo", SLOS[0], *vary, "--out", str(results))
    assert told.exit_code == 0, told.output
    assert "smallest cost.query_usd that keeps them" in told.output
    none = invoke("--slo", "query.latency_s.p95 < 0.01", *vary, "--out", str(results), "--json")
    assert none.exit_code == 3
    assert json.loads(none.stdout)["best"] is None


def test_the_largest_load_is_an_edge(tmp_path: Path) -> None:
    told = invoke(
        *("--slo", "query.latency_s.mean < 3", "--largest-load", "--replications", "3"),
        *("--resolution", "0.1", "--out", str(tmp_path / "out"), "--json"),
    )
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["largest_per_s"] < found["broken_per_s"] <= found["largest_per_s"] * 1.101
    assert found["largest_per_s"] < found["best_possible_per_s"]
    kept = [probe for probe in found["probes"] if probe["is_kept"]]
    assert max(probe["rate_per_s"] for probe in kept) == found["largest_per_s"]
    assert all(probe["rate_per_s"] > found["largest_per_s"] for probe in found["probes"] if not probe["is_kept"])
    assert found["means"]["query.latency_s.mean"] <= 3
    again = invoke(
        *("--slo", "query.latency_s.mean < 3", "--largest-load", "--replications", "3"),
        *("--resolution", "0.1", "--out", str(tmp_path / "out"), "--json"),
    )
    assert again.stdout == told.stdout
    impossible = invoke(
        *("--slo", "query.latency_s.mean < 0.001", "--largest-load", "--replications", "2"),
        *("--out", str(tmp_path / "out")),
    )
    assert impossible.exit_code == 3
    assert "no load keeps them" in impossible.output


def rows(*values: float | None) -> list[dict[str, float | None]]:
    return [{"x.mean": value} for value in values]


@pytest.mark.parametrize(
    ("text", "values", "state"),
    [
        ("x.mean < 10", (1.0, 1.1, 0.9), "holds"),
        ("x.mean < 1", (1.0, 1.1, 0.9), "unclear"),
        ("x.mean < 0.5", (1.0, 1.1, 0.9), "fails"),
        ("x.mean > 0.5", (1.0, 1.1, 0.9), "holds"),
        ("x.mean >= 2", (1.0, 1.1, 0.9), "fails"),
        ("x.mean < 10", (1.0, None, 0.9), "withheld"),
        ("x.mean < 10", (1.0,), "unclear"),
        ("x.mean < 1", (1.0, 1.0), "holds"),
    ],
)
def test_states_of_an_slo(text: str, values: tuple[Any, ...], state: str) -> None:
    (slo,) = parse_slos([text])
    assert slo.state(rows(*values)) == state


def test_slos_that_are_none() -> None:
    for text in ("x", "x = 3", "x < fast", "< 3"):
        with pytest.raises(InputError, match="is no SLO"):
            parse_slos([text])
    with pytest.raises(InputError, match=r"did you mean 'x\.mean'"):
        Slo("x.men", True, 1.0).state(rows(1.0))
    assert worst({"a": "holds", "b": "unclear"}) == "unclear"
    assert worst({"a": "withheld", "b": "fails"}) == "fails"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "query.latency_s.p95 < 6", "--largest-load", "--vary", "cluster.tp=1"], "a question of its own"),
        (["--slo", "query.latency.p95 < 6"], "there is no metric"),
        (["--slo", "query.latency_s.p95"], "is no SLO"),
        ([], "Missing option '--slo'"),
        (
            ["--slo", "query.latency_s.p95 < 6", "--largest-load", "--set", "workload.arrivals.process=together"],
            "rate",
        ),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    told = invoke(*arguments, "--out", str(tmp_path / "out"))
    assert told.exit_code == 2, told.output
    assert message in told.output
