"""Every strategy against a schedule worked out by hand: flat steps of 1 ms, two queries, so a token is a millisecond.

A request that arrives at t has its k-th token at t + k ms (nothing queues), a score is there after 1 ms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sim_rig import MS, Seen, world

from ttsim_des.errors import InputError
from ttsim_des.scenario.schema import StrategyTable
from ttsim_des.workload.strategies.graphs import read_graphs
from ttsim_des.workload.strategies.resolve import resolve_strategy
from ttsim_des.workload.strategies.votes import beats

FLAT = {"constant_ns": float(MS)}
PROMPTS = [9, 14]


def run(strategy: str, outputs: list[list[int]], worth: Any = None, **settings: Any) -> Seen:
    samples = settings.pop("samples", 1)
    pools = ["verifier"] if settings.get("verifier") == "verifier" else []
    return world(
        PROMPTS,
        outputs,
        [0, 100 * MS],
        strategy=strategy,
        samples=samples,
        worth=worth,
        settings=settings,
        pools=pools,
        latency=FLAT,
        max_tokens=settings.pop("cap", 1_000),
    )


def ms(seen: Seen, name: str, table: str = "requests") -> list[float]:
    """A column of stamps in milliseconds."""
    return [value / MS for value in seen.column(name, table)]


def of_query(seen: Seen, query: int, name: str) -> list[Any]:
    return [row[name] for row in seen.requests if row["query_id"] == query]


RIGHT = [(0, 1.0), (3, 2.0), (0, 0.5)]
WRONG = [(4, 3.0), (4, 0.1), (0, 2.5)]


def test_a_verifier_reads_all_samples_when_they_have_finished() -> None:
    seen = run("best_of_n", [[3, 5, 4], [2, 2, 7]], [RIGHT, WRONG], samples=3, verifier="verifier")
    assert ms(seen, "finish_ns", "queries") == [6, 108]
    assert of_query(seen, 0, "pool") == ["generator"] * 3 + ["verifier"] * 3
    assert of_query(seen, 0, "prompt_tokens") == [9, 9, 9, 12, 13, 14]  # in order of finishing
    assert of_query(seen, 0, "output_tokens") == [3, 5, 4, 0, 0, 0]
    assert seen.column("answer_id", "queries") == [3, 4]  # of the best-scored samples
    assert seen.column("answer_request_id", "queries") == [1, 6]


def test_a_verifier_reads_each_sample_as_it_ends() -> None:
    seen = run("best_of_n", [[3, 5, 4], [2, 2, 7]], [RIGHT, WRONG], samples=3, verifier="verifier", score_when="each")
    assert ms(seen, "finish_ns", "queries") == [6, 108]
    scores = [row for row in seen.requests if row["pool"] == "verifier"]
    assert [(row["arrival_ns"] // MS, row["finish_ns"] // MS) for row in scores] == [
        *((3, 4), (4, 5), (5, 6)),
        *((102, 103), (102, 103), (107, 108)),
    ]


def test_the_generator_can_judge_its_own_samples() -> None:
    """The score's prompt is the sample's text: all of its full blocks that were computed are hit."""
    seen = run("best_of_n", [[8, 3], [2, 2]], [RIGHT, WRONG], samples=2, verifier="generator", score_tokens=2)
    score = seen.requests[3]
    assert score["pool"] == "generator"
    assert (score["prompt_tokens"], score["cached_tokens"]) == (9 + 8 + 2, 16)
    assert ms(seen, "finish_ns", "queries") == [9, 103]


def test_the_majority_answers() -> None:
    seen = run("self_consistency", [[3, 5, 4], [2, 2, 7]], [RIGHT, WRONG], samples=3)
    assert ms(seen, "finish_ns", "queries") == [5, 107]
    assert seen.column("answer_id", "queries") == [0, 4]
    assert seen.column("critical_tokens", "queries") == [5, 7]


def test_a_vote_without_answers_has_none() -> None:
    """Chains that are cut have no answer; the vote is among the others."""
    seen = run("self_consistency", [[30, 50, 4], [30, 30, 30]], [RIGHT, WRONG], samples=3, cap=10)
    assert ms(seen, "finish_ns", "queries") == [10, 110]
    assert seen.column("answer_id", "queries") == [0, -1]


@pytest.mark.parametrize(
    ("top", "second", "chance"), [(0, 0, 0.5), (1, 0, 0.75), (2, 0, 0.875), (1, 1, 0.5), (2, 1, 11 / 16)]
)
def test_how_sure_a_vote_is(top: int, second: int, chance: float) -> None:
    """P(p > 1/2) of Beta(top + 1, second + 1), from its polynomial."""
    assert beats(top, second) == pytest.approx(chance)


def test_waves_stop_when_the_vote_is_decided() -> None:
    """Waves of 2 until 0.85: two equal answers decide (0.875); 1 : 1 does not, nor 2 : 1, nor 3 : 1 (0.8125)."""
    outputs = [[3, 5, 4, 4], [2, 6, 7, 3]]
    worth = [[(0, 0.0), (0, 0.0)], [(4, 0.0), (0, 0.0), (0, 0.0), (0, 0.0)]]
    seen = run("adaptive_consistency", outputs, worth, samples=4, wave=2, threshold=0.85)
    assert seen.column("requests", "queries") == [2, 4]
    # 0: both after 5. 1: 2 and 6, then the second wave from 106 on, all of it since nothing is decided: 106 + 7.
    assert ms(seen, "finish_ns", "queries") == [5, 113]
    assert seen.column("answer_id", "queries") == [0, 0]


def test_a_decided_wave_is_cancelled() -> None:
    outputs = [[3, 4, 50], [2, 3, 60]]
    worth = [[(0, 0.0)] * 3, [(2, 0.0)] * 3]
    seen = run("adaptive_consistency", outputs, worth, samples=3, wave=3, threshold=0.85)
    assert ms(seen, "finish_ns", "queries") == [4, 103]
    assert of_query(seen, 0, "status") == ["finished", "finished", "cancelled"]
    assert seen.column("wasted_tokens", "queries") == [4, 3]
    assert seen.column("answer_id", "queries") == [0, 2]


def test_the_first_two_of_three() -> None:
    seen = run("first_finish", [[3, 9, 4], [2, 8, 7]], [RIGHT, WRONG], samples=3, first=2)
    assert ms(seen, "finish_ns", "queries") == [4, 107]
    assert of_query(seen, 1, "status") == ["finished", "cancelled", "finished"]
    # 0: samples 0 and 2 both say 0. 1: 4 and 0 tie; the answer that came first counts.
    assert seen.column("answer_id", "queries") == [0, 4]


TREE = [[4, 4, 4, 4, 8, 6, 9, 9], [4, 4, 4, 4, 8, 6, 9, 9]]
TREE_WORTH = [
    [(0, 2.0), (5, 1.0), (6, 3.0), (7, 0.0), (8, 9.0), (9, 4.0), (8, 9.0), (9, 4.0)],
    [(5, 2.0), (5, 1.0), (0, 3.0), (7, 0.0), (0, 9.0), (9, 4.0), (8, 9.0), (9, 4.0)],
]
"""Chains of two steps of 2 tokens, but for the draws of the forks. With uniforms of 1/2 a step's score is half the last
one's, and a fork with half of its chain behind it keeps its parent's outcome (1/2 is not below what is left)."""


def test_beam_search() -> None:
    """4 beams: lanes 2 and 0 go on, with a fork of each that has half of lanes 4 and 5 ahead (4 and 3 tokens, 2 steps).

    The forks are left after the second step, 2/3 done; they and a fork of each, with a third of lanes 6 and 7 ahead, go
    to their ends: 2, 1, 3 and 3 tokens. Scores take a millisecond each time.
    """
    seen = run("beam_search", TREE, TREE_WORTH, samples=4, width=2, step_tokens=2, iterations=3, verifier="verifier")
    steps = [row for row in seen.requests if row["query_id"] == 0 and row["pool"] == "generator"]
    assert [row["output_tokens"] for row in steps] == [2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 3, 3]
    assert [row["arrival_ns"] // MS for row in steps] == [0] * 4 + [3] * 4 + [6] * 4
    assert [row["parent_request_id"] for row in steps] == [-1, -1, -1, -1, 2, 0, 2, 0, 10, 11, 10, 11]
    assert ms(seen, "finish_ns", "queries") == [10, 110]
    assert seen.column("answer_id", "queries") == [6, 0]
    assert seen.column("output_tokens", "queries") == [25, 25]


def test_trees_apart() -> None:
    """2 trees of 2: the better of lanes 0 and 1, and of 2 and 3, go on with a fork each."""
    seen = run("dvts", TREE, TREE_WORTH, samples=4, width=2, step_tokens=2, iterations=2)
    first = [row for row in seen.requests if row["query_id"] == 0]
    assert [row["parent_request_id"] for row in first] == [-1, -1, -1, -1, 0, 0, 2, 2]
    assert [row["output_tokens"] for row in first] == [2, 2, 2, 2, 2, 4, 2, 3]
    assert ms(seen, "finish_ns", "queries") == [6, 106]  # the second step goes to the end: 4 tokens of the first fork
    assert seen.column("answer_id", "queries") == [6, 0]


def test_reward_weighted_expansion() -> None:
    """Rewards 1, 0.5, 1.5, 0 at temperature 0.5 weigh e^-1, e^-2, 1, e^-3: 3 children of lane 2, 1 of lane 0."""
    seen = run("rebase", TREE, TREE_WORTH, samples=4, step_tokens=2, iterations=2, temperature=0.5)
    first = [row for row in seen.requests if row["query_id"] == 0]
    assert [row["parent_request_id"] for row in first] == [-1, -1, -1, -1, 2, 2, 2, 0]
    assert seen.column("answer_id", "queries") == [6, 0]


def test_revision_reads_everything_again() -> None:
    seen = run("sequential_revision", [[3, 5], [2, 4]], rounds=2, append_tokens=6)
    assert ms(seen, "finish_ns", "queries") == [8, 106]
    assert seen.column("prompt_tokens") == [9, 9 + 3 + 6, 14, 14 + 2 + 6]
    # Blocks of 4, all but the last output token computed: 11 and 15 tokens.
    assert seen.column("cached_tokens") == [0, 8, 0, 12]
    assert seen.column("critical_tokens", "queries") == [8, 6]


def test_a_short_chain_is_made_to_go_on() -> None:
    """4 tokens are below 10: continuations of half of 8 and of 6; then 4 + 4 + 3 = 11 are enough. 12 are at once."""
    seen = run(
        "budget_forcing",
        [[4, 8, 6, 9], [12, 1]],
        [[(5, 0.0), (6, 0.0), (0, 0.0)], [(2, 0.0)]],
        min_tokens=10,
        rounds=3,
        continue_share=0.5,
    )
    assert of_query(seen, 0, "output_tokens") == [4, 4, 3]
    assert of_query(seen, 0, "prompt_tokens") == [9, 9 + 4 + 2, 9 + 8 + 4]
    assert ms(seen, "finish_ns", "queries") == [11, 112]
    assert seen.column("answer_id", "queries") == [0, 2]


def test_a_long_chain_is_made_to_answer() -> None:
    """Cut at 20 of 30 tokens the answer is the chain's (2/3 > 1/2), at 20 of 50 it is wrong (2/5 < 1/2)."""
    seen = run("budget_forcing", [[30], [50]], [[(0, 0.0)], [(0, 0.0)]], min_tokens=1, answer_tokens=5, cap=20)
    assert seen.column("output_tokens") == [20, 5, 20, 5]
    assert ms(seen, "finish_ns", "queries") == [25, 125]
    assert seen.column("answer_id", "queries") == [0, 1]


def test_an_agent_waits_for_its_tools() -> None:
    seen = run("agent_loop", [[3, 5, 2], [2, 4, 6]], rounds=3, append_tokens=6, think_s=0.02)
    assert ms(seen, "finish_ns", "queries") == [3 + 20 + 5 + 20 + 2, 100 + 2 + 20 + 4 + 20 + 6]
    assert of_query(seen, 0, "prompt_tokens") == [9, 9 + 3 + 6, 9 + 3 + 6 + 5 + 6]


GRAPH = [
    {"graph": 0, "node": "plan", "tokens": 4},
    {"graph": 0, "node": "left", "parents": ["plan"], "kv_parent": "plan", "append_tokens": 3, "tokens": 6},
    {"graph": 0, "node": "right", "parents": ["plan"], "kv_parent": "plan", "tokens": 2},
    {"graph": 0, "node": "tool", "kind": "delay", "parents": ["right"], "delay_s": 0.01},
    {"graph": 0, "node": "fast", "parents": ["left", "tool"], "join": "any", "tokens": 3},
    {"graph": 0, "node": "end", "parents": ["left", "tool"], "tokens": 5, "answers": True},
    {"graph": 1, "node": "one", "tokens": 7},
    {"graph": 1, "node": "judge", "kind": "score", "parents": ["one"], "kv_parent": "one"},
]


def test_a_recorded_graph(tmp_path: Path) -> None:
    """plan 4; left until 10, right until 6, tool until 16; fast from 10 to 13; end from 16 to 21."""
    path = tmp_path / "graph.jsonl"
    path.write_text("\n".join(map(json.dumps, GRAPH)))
    seen = run("recorded_graph", [[1], [1]], graph=str(path))
    assert ms(seen, "finish_ns", "queries") == [21, 108]
    assert [(row["arrival_ns"] // MS, row["finish_ns"] // MS) for row in seen.requests] == [
        *((0, 4), (4, 10), (4, 6), (10, 13), (16, 21)),
        *((100, 107), (107, 108)),
    ]
    assert seen.column("prompt_tokens")[:3] == [9, 9 + 4 + 3, 9 + 4]


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"graph": 0, "node": "a", "tokens": 0}, ":1: .*tokens"),
        ({"graph": 0, "node": "a", "parents": ["b"]}, "names 'b', which is not above it"),
        ({"graph": 0, "node": "a", "kinds": "x"}, "kinds"),
    ],
)
def test_bad_graphs_are_named(tmp_path: Path, node: dict[str, Any], says: str) -> None:
    path = tmp_path / "graph.jsonl"
    path.write_text(json.dumps(node))
    with pytest.raises(InputError, match=says):
        read_graphs(path)


@pytest.mark.parametrize("name", ["best_of_n", "self_consistency", "first_finish", "adaptive_consistency"])
def test_one_sample_of_any_strategy_is_single(name: str) -> None:
    outputs, worth = [[5], [7]], [[(0, 1.0)], [(3, 1.0)]]
    alone = run("single", outputs, worth)
    other = run(name, outputs, worth, samples=1, wave=1)
    assert other.requests == alone.requests
    assert other.queries == alone.queries


def test_a_user_can_bring_a_strategy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def twice(query):\n    yield query.join([query.spawn(), query.spawn()])\n")
    strategy, _ = resolve_strategy(StrategyTable(name="mine.py:twice"), tmp_path)
    seen = world(PROMPTS, [[3, 5], [2, 4]], [0, 100 * MS], strategy=strategy, latency=FLAT)
    assert ms(seen, "finish_ns", "queries") == [5, 104]


@pytest.mark.parametrize(
    ("name", "says"),
    [("gone.py:f", "FileNotFoundError"), ("mine.py:twize", "did you mean 'twice'"), ("bad.py:f", "ZeroDivisionError")],
)
def test_strategies_that_cannot_be_loaded_are_named(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "mine.py").write_text("def twice(query):\n    yield\n")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=says):
        resolve_strategy(StrategyTable(name=name), tmp_path)
