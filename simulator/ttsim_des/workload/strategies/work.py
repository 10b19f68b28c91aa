"""How much a strategy asks for at most, before anything is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ttsim_des.scenario.schema import Workload
from ttsim_des.workload.strategies.graphs import Graph, read_graphs
from ttsim_des.workload.strategies.resolve import resolve_strategy
from ttsim_des.workload.strategies.sequential import ANSWER_TOKENS, CONTINUE_SHARE, WAIT_TOKENS


class StrategyWork(NamedTuple):
    """Per query: requests at most, whole chains that they generate, and tokens by which prompts may grow on the way."""

    requests: int
    chains: float
    prompt_growth: int


def strategy_work(workload: Workload, base_dir: Path) -> StrategyWork:
    """What one query of this workload asks for; for a user's own strategy, one chain for each of `samples`.

    InputError where the strategy, or a file that it needs, cannot be loaded.
    """
    asked = workload.strategy
    resolve_strategy(asked, base_dir)
    samples, rounds, cap = asked.samples, asked.rounds or 1, workload.max_tokens
    scored = 2 if asked.verifier is not None else 1
    append = asked.append_tokens or 0
    if asked.name == "single":
        return StrategyWork(1, 1, 0)
    if asked.name in ("best_of_n", "self_consistency", "adaptive_consistency", "first_finish"):
        return StrategyWork(samples * scored, samples, 0)
    if asked.name in ("beam_search", "dvts", "rebase"):
        return StrategyWork(samples * (asked.iterations or 1) * scored, samples, 0)
    if asked.name in ("sequential_revision", "agent_loop"):
        return StrategyWork(rounds, rounds, (rounds - 1) * (append + cap))
    if asked.name == "budget_forcing":
        share = asked.continue_share or CONTINUE_SHARE
        answer = (asked.answer_tokens or ANSWER_TOKENS) + 1
        return StrategyWork(rounds + 2, 1 + rounds * share, (rounds + 1) * WAIT_TOKENS + answer)
    if asked.name == "recorded_graph" and asked.graph is not None:
        graphs = read_graphs(base_dir / asked.graph)
        counts = [sum(node.kind != "delay" for node in nodes) for nodes in graphs]
        growth = max(_prompt_growth(nodes, cap) for nodes in graphs)
        return StrategyWork(max(1, *counts), sum(counts) / len(counts), growth)
    return StrategyWork(samples, samples, 0)


def _prompt_growth(nodes: Graph, cap: int) -> int:
    """The most that a prompt of a graph is longer than the query's."""
    texts: dict[str, int] = {}
    longest = 0
    for node in nodes:
        prompt = (0 if node.kv_parent is None else texts[node.kv_parent]) + node.append_tokens
        longest = max(longest, prompt)
        most = min(node.tokens or cap, node.max_tokens or cap) if node.kind == "decode" else 0
        texts[node.node] = prompt + most
    return longest
