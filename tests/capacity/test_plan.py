"""`ttsim-des plan`: the choice of brute force for less work, and the edge of what a load may be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ttsim_des import load, run
from ttsim_des.capacity import plan
from ttsim_des.capacity.candidate import TIMELESS, USD
from ttsim_des.capacity.executors import LocalExecutor
from ttsim_des.capacity.grid import grid
from ttsim_des.capacity.question import Question
from ttsim_des.capacity.slo import Slo, parse_slos, worst
from ttsim_des.cli import main
from ttsim_des.errors import InputError
from ttsim_des.report.variants import shortened

SMALL = [
    *("experiment.queries=240", "workload.output.mean=200", "workload.max_tokens=1000"),
    "workload.arrivals.rate_per_s=12",
]
SETS = [part for change in SMALL for part in ("--set", change)]
VARY = ["cluster.gpu=a100-sxm,h200-sxm", "cluster.replicas=1,2,4", "engine.max_num_seqs=32,256,512,1024"]
SLOS = ("query.latency_s.p95 < 6",)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", "best-of-n", *SETS, *arguments])


def asked(executor: LocalExecutor, out: Path, slos: tuple[str, ...] = SLOS) -> Question:
    return Question("best-of-n", tuple(SMALL), None, parse_slos(slos), 3, out, executor)


def chosen(
    out: Path, *, prune: bool, slos: tuple[str, ...] = SLOS, vary: list[str] = VARY, objective: str = USD
) -> plan.Choice:
    with LocalExecutor(2) as executor:
        return plan.choose(asked(executor, out, slos), grid(vary), objective, prune=prune)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan") / "results"


def test_pruning_changes_the_work_and_not_the_choice(results: Path) -> None:
    pruned, brute = chosen(results, prune=True), chosen(results, prune=False)
    assert brute.best is not None
    assert pruned.best is not None
    assert pruned.best.variant == brute.best.variant
    assert brute.simulated == len(brute.candidates) == 24
    assert pruned.simulated <= 0.4 * brute.simulated
    reasons = [candidate.why_not for candidate in pruned.candidates]
    assert any(reason.startswith("offered ") for reason in reasons)
    assert any(reason.startswith("cannot be cheaper") for reason in reasons)


def test_what_is_known_without_simulating_is_true(results: Path) -> None:
    """Bounds and twins of pruned candidates, against their own simulations."""
    pruned, brute = (chosen(results, prune=prune).candidates for prune in (True, False))
    twins = 0
    for known, told in zip(pruned, brute, strict=True):
        if known.offered_share is not None and known.offered_share > 1:
            assert told.state != "holds"
        for metric in known.bounds:
            value = told.value(metric)
            assert value is None or known.at_least(metric) <= value
        if known.twin:
            twins += 1
            shown = ("query.latency_s.p95", "request.tpot_s.mean", "steps.count", "prefix_cache.cached_tokens")
            assert [[row[name] for name in shown] for row in told.runs] == [
                [row[name] for name in shown] for row in known.runs
            ]
    assert twins >= 2
    bounded = [candidate for candidate in pruned if "query.latency_s.p95" in candidate.bounds]
    assert len(bounded) >= 6


def test_a_limit_that_was_met_has_no_twin(results: Path) -> None:
    candidates = chosen(results, prune=True, vary=["engine.max_num_seqs=64,256,512", "cluster.replicas=2"]).candidates
    by_limit = {candidate.variant[0]: candidate for candidate in candidates}
    small, large = by_limit["engine.max_num_seqs=64"], by_limit["engine.max_num_seqs=256"]
    assert small.runs
    assert small.runs[0]["batch.peak_running"] == 64
    assert not large.runs_like(small)


def test_without_runs_to_compare_with_nothing_runs_alike(results: Path) -> None:
    """As for a user's strategy, of which nothing is known without load."""
    candidates = chosen(results, prune=True).candidates
    told = next(candidate for candidate in candidates if candidate.twin)
    twin = next(candidate for candidate in candidates if candidate.label == told.twin)
    assert told.runs_like(twin)
    assert not replace(told, hits=[]).runs_like(twin)
    assert not told.runs_like(replace(twin, runs=[]))
    pressed = [run | {"kv.peak_held_share": 0.9} for run in twin.runs]
    evicted = [run | {"prefix_cache.cached_tokens": 1} for run in twin.runs]
    for runs in (pressed, evicted):
        assert not told.runs_like(replace(twin, runs=runs))


def test_an_slo_that_even_an_idle_engine_misses_costs_one_workload(tmp_path: Path) -> None:
    found = chosen(tmp_path / "out", prune=True, slos=("query.latency_s.p95 < 0.2",))
    assert found.best is None
    assert found.simulated == 0
    assert {candidate.why_not for candidate in found.candidates if (candidate.offered_share or 0) < 1} == {
        "misses query.latency_s.p95 < 0.2 even without load"
    }


STRATEGY = "workload.strategy."
TREE = ("samples=4", "width=2", "step_tokens=200", "iterations=10")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("single", ()),
        ("best_of_n", ("samples=4",)),
        ("self_consistency", ("samples=5",)),
        ("beam_search", TREE),
        ("dvts", TREE),
        ("rebase", ("samples=4", "step_tokens=200", "iterations=10", "temperature=0.2")),
        ("sequential_revision", ("rounds=2", "append_tokens=4")),
        ("budget_forcing", ("rounds=2", "min_tokens=400", "continue_share=0.5", "answer_tokens=20")),
    ],
)
def test_load_changes_neither_accuracy_nor_critical_tokens_of_timeless_strategies(
    name: str, settings: tuple[str, ...]
) -> None:
    assert name in TIMELESS
    removed = [f"{STRATEGY}{key}=" for key in ("verifier", "width", "step_tokens", "iterations", "samples")]
    changes = [*removed, "verifier=", f"{STRATEGY}name={name}", *(STRATEGY + text for text in settings)]
    found = []
    for rate in (0.001, 8.0):
        summary = run(
            load("beam-search", [*changes, "experiment.queries=60", f"workload.arrivals.rate_per_s={rate}"])
        ).summary
        found.append((summary["accuracy"]["share"], summary["query"]["critical_tokens"]["p50"]))
    assert found[0] == found[1]


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
    vary = ["cluster.replicas=1,2", "engine.max_num_seqs=64,256"]
    found = chosen(results, prune=True, vary=vary, objective="query.latency_s.mean")
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
        ([], "Nothing to keep: give --slo"),
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


RANGES = [
    "cluster.replicas=1..4",
    "engine.max_num_seqs=16..512",
    "engine.max_num_batched_tokens=1024..8192",
    "cluster.gpu=a100-sxm,h200-sxm",
]


def test_more_than_two_ranges_are_searched(tmp_path: Path) -> None:
    """The least that the same GPUs cost on a grid is found without one, and found again."""
    pytest.importorskip("optuna", reason="the extra search is not installed")
    vary = [part for text in RANGES for part in ("--vary", text)]
    arguments = ["--slo", SLOS[0], *vary, "--trials", "24", "--replications", "3", "--workers", "2", "--json"]
    found = [json.loads(invoke(*arguments, "--out", str(tmp_path / name)).stdout) for name in ("one", "two")]
    assert found[0] == found[1]
    by_grid = chosen(tmp_path / "grid", prune=True, vary=["cluster.replicas=1,2,3,4", RANGES[3]])
    assert by_grid.best is not None
    best = next(row for row in found[0]["candidates"] if row["variant"] == found[0]["best"])
    assert best["objective"] == pytest.approx(by_grid.best.exact[USD])
    assert found[0]["simulated"] < len(found[0]["candidates"]) <= 24
    told = invoke("--slo", SLOS[0], *vary, "--no-pruning", "--out", str(tmp_path / "out"))
    assert told.exit_code == 2


def test_the_question_may_stand_in_the_scenario(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "scenarios" / "best-of-n.toml").read_text()
    scenario = tmp_path / "mine.toml"
    asked_for = 'slos = ["query.latency_s.p95 < 6"]\nvary = ["cluster.replicas=1,2"]\nreplications = 2\n'
    scenario.write_text(f'{text}\n[plan]\n{asked_for}points = ["engine.max_num_seqs=64 cluster.gpu=h200-sxm"]\n')
    told = CliRunner().invoke(main, ["plan", str(scenario), *SETS, "--out", str(tmp_path / "out"), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["slos"] == ["query.latency_s.p95 < 6"]
    assert [row["variant"] for row in found["candidates"]] == [
        ["engine.max_num_seqs=64", "cluster.gpu=h200-sxm", f"cluster.replicas={replicas}"] for replicas in (1, 2)
    ]
    points = len(list((tmp_path / "out").glob("points/*.json")))
    scenario.write_text(scenario.read_text().replace("< 6", "< 7"))  # another question, the same runs
    again = CliRunner().invoke(main, ["plan", str(scenario), *SETS, "--out", str(tmp_path / "out"), "--json"])
    assert again.exit_code == 0
    assert len(list((tmp_path / "out").glob("points/*.json"))) == points
    scenario.write_text(scenario.read_text().replace("engine.max_num_seqs=64 ", "engine.max_num_seqs "))
    wrong = CliRunner().invoke(main, ["plan", str(scenario), *SETS, "--out", str(tmp_path / "out")])
    assert wrong.exit_code == 2
    assert "is no point" in wrong.output


def test_variants_are_shown_by_what_tells_them_apart() -> None:
    shown = shortened([("cluster.tp=1", "a.n=1", "verifier.tp=1"), ("cluster.tp=2", "a.n=1", "verifier.tp=2")])
    assert list(shown.values()) == ["cluster.tp=1 verifier.tp=1", "cluster.tp=2 verifier.tp=2"]
    assert list(shortened([("a.n=1",), ()]).values()) == ["n=1", "as it is"]
