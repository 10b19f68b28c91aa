"""Test-time-scaling policies: who is spawned, who is waited for, who is cancelled, what the answer is.

Each is a short process over `Query`: docs/strategies.md has their formulas.
"""

from __future__ import annotations

from ttsim_des.workload.handle import Strategy
from ttsim_des.workload.strategies.graphs import recorded_graph
from ttsim_des.workload.strategies.sampling import (
    adaptive_consistency,
    best_of_n,
    first_finish,
    self_consistency,
    single,
)
from ttsim_des.workload.strategies.sequential import agent_loop, budget_forcing, sequential_revision
from ttsim_des.workload.strategies.trees import beam_search, dvts, rebase

STRATEGIES: dict[str, Strategy] = {
    "single": single,
    "best_of_n": best_of_n,
    "self_consistency": self_consistency,
    "adaptive_consistency": adaptive_consistency,
    "first_finish": first_finish,
    "beam_search": beam_search,
    "dvts": dvts,
    "rebase": rebase,
    "sequential_revision": sequential_revision,
    "budget_forcing": budget_forcing,
    "agent_loop": agent_loop,
    "recorded_graph": recorded_graph,
}
