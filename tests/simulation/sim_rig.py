"""Whole simulations in hand-made worlds: prompts, outputs and arrivals are given, everything else is the product.

Steps take 1 ms + 1 us a token + 7 ns a context token of decodes + 3 ns a query-key pair of prefill. Scheduling is
synchronous, without host time, blocks hold 4 tokens. Each world is run leaping and step by step, with the same records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pyarrow as pa

from ttsim_des.deployment import Deployment
from ttsim_des.engine.config import EngineConfig
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.host import HostOverhead
from ttsim_des.records.tables import Tables
from ttsim_des.scenario.schema import Scenario
from ttsim_des.simulation.run import simulate
from ttsim_des.workload.handle import Strategy
from ttsim_des.workload.queries import QueryInput, QuerySource, Verdict
from ttsim_des.workload.strategies import STRATEGIES

MS = 1_000_000
LATENCY = {"constant_ns": MS, "per_token_ns": 1_000, "per_decode_ctx_token_ns": 7, "per_prefill_qk_pair_ns": 3}
Row = dict[str, Any]


class Source:
    """Prompts, outputs and what they are worth as given; query q's text is its own. Uniforms are all one half."""

    def __init__(
        self,
        prompts: Sequence[int],
        outputs: Sequence[Sequence[int]],
        worth: Sequence[Sequence[tuple[int, float]]] | None = None,
    ) -> None:
        self._prompts, self._outputs, self._worth = prompts, outputs, worth
        self.has_outcomes = worth is not None

    def verdict(self, query_id: int, sample: int) -> Verdict:
        assert self._worth is not None
        return Verdict(*self._worth[query_id][sample])

    def uniform(self, query_id: int, name: str, index: int) -> float:
        return 0.5

    def query(self, query_id: int) -> QueryInput:
        tokens = self._prompts[query_id]
        return QueryInput(query_id, tokens, ((query_id + 1, tokens),))

    def output_tokens(self, query_id: int, sample: int) -> int:
        return self._outputs[query_id][sample]


@dataclass
class Seen:
    """Records as rows, and what the leaping run cost."""

    tables: Tables
    queries: list[Row]
    requests: list[Row]
    events: int

    def column(self, name: str, table: str = "requests") -> list[Any]:
        return [row[name] for row in getattr(self, table)]


def world(
    prompts: Sequence[int],
    outputs: Sequence[Sequence[int]],
    arrivals_ns: Sequence[int] | None = None,
    *,
    strategy: Strategy | str = "single",
    samples: int = 1,
    first: int | None = None,
    concurrency: int | None = None,
    turnaround_ns: int = 0,
    ingest_ns: int = 0,
    update_step_ns: int = 0,
    update_sequence_ns: int = 0,
    replicas: int = 1,
    router: str = "round_robin",
    max_tokens: int = 1_000,
    latency: dict[str, float] = LATENCY,
    usable_blocks: int = 1_000,
    worth: Sequence[Sequence[tuple[int, float]]] | None = None,
    settings: dict[str, Any] | None = None,
    pools: Sequence[str] = (),
    acceptance: Any = None,
    **engine: Any,
) -> Seen:
    """Simulate both ways, compare, and return the records.

    `worth`: (answer, score) of each sample; `settings`: more of the strategy's table; `pools`: others beside the
    generator's, all alike; `acceptance`: with `speculation` among the engine's settings, what becomes of drafts.
    """
    name = strategy if isinstance(strategy, str) else "custom"
    closed: Row = {"process": "closed_loop", "concurrency": concurrency}
    arrivals = {"process": "together"} if concurrency is None else closed

    def run(stepping: str) -> Any:
        scenario = Scenario.model_validate(
            {
                "schema": 1,
                "name": "world",
                "experiment": {"kind": "terminating", "queries": len(prompts)},
                "workload": {
                    "strategy": {"name": name, "samples": samples, "first": first, **(settings or {})},
                    "arrivals": arrivals,
                    "prompt": {"distribution": "constant", "tokens": 1},
                    "output": {"distribution": "constant", "tokens": 1},
                    "max_tokens": max_tokens,
                },
                "cluster": {"gpu": "none", "model": "none", "replicas": replicas, "router": router},
                "engine": {"stepping": stepping},
                "client": {"turnaround_s": turnaround_ns / 1e9},
            }
        )
        config = {"block_size": 4, "async_scheduling": False, "num_gpu_blocks": usable_blocks + 1} | engine
        host = HostOverhead(update_step_ns=update_step_ns, update_sequence_ns=update_sequence_ns, request_ns=ingest_ns)
        deployment = SimpleNamespace(
            engine_config=EngineConfig(**config),
            step_model=AffineStepModel(**latency),
            host=host,
            router=router,
            replicas=replicas,
            pools={},
            acceptance=acceptance,
        )
        deployment.pools = dict.fromkeys(pools, deployment)
        times = None if concurrency is not None else iter(arrivals_ns or [0] * len(prompts))
        custom: dict[str, Callable[..., Any]] = {} if isinstance(strategy, str) else {"custom": strategy}
        with patch.dict(STRATEGIES, custom):
            source = cast(QuerySource, Source(prompts, outputs, worth))
            return simulate(scenario, cast(Deployment, deployment), source, times)

    return _the_same(run("leap"), run("step"))


def _the_same(leapt: Any, stepped: Any) -> Seen:
    """The records of both, which must not differ."""
    assert leapt.tables.queries.equals(stepped.tables.queries)
    assert leapt.tables.requests.equals(stepped.tables.requests)
    assert leapt.tables.end_ns == stepped.tables.end_ns
    assert expanded_steps(leapt.tables.steps) == expanded_steps(stepped.tables.steps)
    assert expanded_gaps(leapt.tables.token_gaps) == expanded_gaps(stepped.tables.token_gaps)
    tables = leapt.tables
    return Seen(tables, tables.queries.to_pylist(), tables.requests.to_pylist(), leapt.simpy_events)


_BATCH = ("decode_seqs", "prefill_seqs", "prefill_tokens", "running", "waiting", "preempted", "in_domain")


def expanded_steps(steps: pa.Table) -> list[tuple[Any, ...]]:
    """Every step: replica, start, duration, batch. Without blocks, which within a leap are averages."""
    found = []
    for row in steps.to_pylist():
        start_ns = row["start_ns"]
        for k in range(row["steps"]):
            duration_ns = row["duration_ns"] + k * row["increment_ns"]
            found.append((row["replica"], start_ns, duration_ns, *(row[name] for name in _BATCH)))
            start_ns += row["period_ns"] + k * row["period_increment_ns"]
    return found


def expanded_gaps(gaps: pa.Table) -> dict[tuple[int, int, int], int]:
    """Every gap between tokens: (replica, delivery, gap) -> sequences."""
    found: dict[tuple[int, int, int], int] = {}
    for row in gaps.to_pylist():
        delivered_ns = row["delivered_ns"]
        for k in range(row["steps"]):
            gap_ns = row["gap_ns"] + k * row["increment_ns"]
            delivered_ns += gap_ns if k else 0
            key = (row["replica"], delivered_ns, gap_ns)
            found[key] = found.get(key, 0) + row["seqs"]
    return found
