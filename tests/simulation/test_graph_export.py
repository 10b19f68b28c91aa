"""A run's queries as graphs: replayed in the same scenario they are the same requests at the same times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ttsim_des import load, run
from ttsim_des.cli import main
from ttsim_des.report.graphs import graph_lines

TREE = ["workload.strategy.step_tokens=200", "workload.strategy.iterations=6", "workload.strategy.samples=4"]
WORKLOADS = {
    "beam_search": [*TREE, "workload.strategy.width=2", "workload.strategy.verifier=verifier"],
    "rebase": [*TREE, "workload.strategy.verifier=verifier"],
    "best_of_n": ["workload.strategy.samples=4", "workload.strategy.verifier=verifier"],
    "first_finish": ["workload.strategy.samples=4", "workload.strategy.first=2"],
    "adaptive_consistency": ["workload.strategy.samples=6", "workload.strategy.wave=2"],
    "agent_loop": [f"workload.strategy.{key}" for key in ("rounds=3", "append_tokens=40", "think_s=1.5")],
    "budget_forcing": ["workload.strategy.min_tokens=700", "workload.strategy.rounds=3", "workload.max_tokens=900"],
}
SAME = (
    *("request_id", "query_id", "sample", "parent_request_id", "pool", "replica", "arrival_ns", "queued_ns"),
    *("scheduled_ns", "first_token_ns", "finish_ns", "status", "finish_reason", "prompt_tokens", "cached_tokens"),
    *("max_tokens", "output_tokens", "computed_tokens", "recomputed_tokens", "overshoot_tokens", "preemptions"),
)
OPEN = ["workload.arrivals.process=poisson", "workload.arrivals.rate_per_s=1", "workload.arrivals.concurrency="]
COMMON = [*OPEN, "experiment.queries=12", "workload.strategy.samples=", "workload.strategy.verifier="]


@pytest.mark.parametrize("turnaround_s", [0, 0.01])
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_replay_is_the_run(tmp_path: Path, name: str, turnaround_s: float) -> None:
    asked = [*COMMON, f"client.turnaround_s={turnaround_s}", *WORKLOADS[name]]
    pool = [] if "workload.strategy.verifier=verifier" in asked else ["verifier="]
    first = run(load("best-of-n-prm", [f"workload.strategy.name={name}", *asked, *pool]))
    path = tmp_path / "graphs.jsonl"
    path.write_text("\n".join(graph_lines(first.tables)))
    cap = [each for each in asked if "max_tokens" in each and "strategy" not in each]
    replay = [*COMMON, f"client.turnaround_s={turnaround_s}", *cap, *pool, f"workload.strategy.graph={path}"]
    again = run(load("best-of-n-prm", ["workload.strategy.name=recorded_graph", *replay]))
    assert again.tables.requests.select(SAME).equals(first.tables.requests.select(SAME))
    for column in ("arrival_ns", "first_token_ns", "finish_ns", "requests", "output_tokens", "wasted_tokens"):
        assert again.tables.queries[column].equals(first.tables.queries[column]), column
    assert again.tables.steps.equals(first.tables.steps)


def test_the_command_writes_once(tmp_path: Path) -> None:
    path = run(load("best-of-n-prm", ["experiment.queries=2"])).save(tmp_path / "run")
    arguments = ["graph", str(path), "--out", str(tmp_path / "g.jsonl")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    nodes = [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert {node["graph"] for node in nodes} == {0, 1}
    assert sum(node.get("kind") == "score" for node in nodes) == 16
    assert CliRunner().invoke(main, arguments).exit_code == 2
