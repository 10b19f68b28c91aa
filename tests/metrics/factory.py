"""Record tables of small worlds made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ttsim_des.metrics.context import RunContext
from ttsim_des.records.tables import QUERIES, REQUESTS, STEPS, TOKEN_GAPS, Tables

S = 1_000_000_000
MS = 1_000_000


def table(schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def request(
    request_id: int, query_id: int, arrival_ns: int, first_ns: int, finish_ns: int, **more: Any
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "request_id": request_id,
        "query_id": query_id,
        "sample": 0,
        "parent_request_id": -1,
        "pool": "generator",
        "replica": 0,
        "priority": 0,
        "arrival_ns": arrival_ns,
        "queued_ns": arrival_ns,
        "scheduled_ns": arrival_ns,
        "first_token_ns": first_ns,
        "finish_ns": finish_ns,
        "status": "finished",
        "finish_reason": "stop",
        "prompt_tokens": 32,
        "cached_tokens": 0,
        "max_tokens": 100,
        "output_tokens": 5,
        "recomputed_tokens": 0,
        "overshoot_tokens": 0,
        "preemptions": 0,
        "draft_steps": 0,
        "draft_tokens": 0,
        "accepted_tokens": 0,
        "rejected_tokens": 0,
        "answer_id": -2,
        "cause_request_id": -1,
        "think_ns": 0,
    }
    row.update(more)
    computed = row["prompt_tokens"] - row["cached_tokens"] + max(row["output_tokens"] - 1, 0)
    row.setdefault(
        "computed_tokens", computed + row["recomputed_tokens"] + row["rejected_tokens"] + row["overshoot_tokens"]
    )
    return row


def query(query_id: int, requests: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    tokens = [row["first_token_ns"] for row in requests if row["first_token_ns"] >= 0]
    last = max(requests, key=lambda row: row["finish_ns"])
    return {
        "query_id": query_id,
        "arrival_ns": min(row["arrival_ns"] for row in requests),
        "first_token_ns": min(tokens, default=-1),
        "finish_ns": last["finish_ns"],
        "status": "finished",
        "requests": len(requests),
        "prompt_tokens": requests[0]["prompt_tokens"],
        "output_tokens": sum(row["output_tokens"] for row in requests),
        "wasted_tokens": 0,
        "answer_request_id": requests[0]["request_id"],
        "straggler_request_id": last["request_id"],
        "answer_id": -2,
        "critical_tokens": last["output_tokens"],
        **more,
    }


def step(start_ns: int, steps: int, duration_ns: int, **more: Any) -> dict[str, Any]:
    row = {
        "pool": "generator",
        "replica": 0,
        "start_ns": start_ns,
        "steps": steps,
        "period_ns": duration_ns,
        "period_increment_ns": more.get("increment_ns", 0),
        "duration_ns": duration_ns,
        "increment_ns": 0,
        "decode_seqs": 1,
        "prefill_seqs": 0,
        "prefill_tokens": 0,
        "draft_tokens": 0,
        "running": 1,
        "waiting": 0,
        "held_blocks": 2,
        "cached_blocks": 0,
        "preempted": 0,
        "in_domain": True,
    }
    return row | more


def gap(delivered_ns: int, steps: int, gap_ns: int, **more: Any) -> dict[str, Any]:
    row = {"pool": "generator", "replica": 0, "delivered_ns": delivered_ns, "steps": steps, "gap_ns": gap_ns}
    return row | {"increment_ns": 0, "seqs": 1, "extra_tokens": 0} | more


@dataclass
class World:
    """Rows by table; `tables()` sorts and freezes them."""

    queries: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    end_ns: int = 0

    def tables(self) -> Tables:
        latest = [row["finish_ns"] for row in self.queries + self.requests]
        return Tables(
            queries=table(QUERIES, sorted(self.queries, key=lambda row: row["query_id"])),
            requests=table(REQUESTS, sorted(self.requests, key=lambda row: row["request_id"])),
            steps=table(STEPS, sorted(self.steps, key=lambda row: (row["pool"], row["replica"], row["start_ns"]))),
            token_gaps=table(TOKEN_GAPS, self.gaps),
            end_ns=self.end_ns or max(latest, default=0),
        )


def context(**more: Any) -> RunContext:
    settings: dict[str, Any] = {
        "name": "by-hand",
        "kind": "terminating",
        "usable_blocks": 10,
        "async_scheduling": False,
    }
    settings |= {"host_gap_bound_ns": 0, "model": "m", "gpu": "g", "engine": "e", "gpu_hour_usd": 3.6}
    return RunContext(**(settings | more))


def one_at_a_time(
    arrivals_s: Sequence[int], outputs: Sequence[int], prefill_ns: int = 2 * S, step_ns: int = S
) -> World:
    """A server that answers one query after the other: a prefill step, then a run of decode steps."""
    world, free_ns = World(), 0
    for number, (arrival_s, output) in enumerate(zip(arrivals_s, outputs, strict=True)):
        arrival_ns = arrival_s * S
        start_ns = max(arrival_ns, free_ns)
        first_ns = start_ns + prefill_ns
        free_ns = first_ns + (output - 1) * step_ns
        row = request(number, number, arrival_ns, first_ns, free_ns, scheduled_ns=start_ns, output_tokens=output)
        world.requests.append(row)
        world.queries.append(query(number, [row]))
        world.steps.append(step(start_ns, 1, prefill_ns, decode_seqs=0, prefill_seqs=1, prefill_tokens=32))
        if output > 1:
            world.steps.append(step(first_ns, output - 1, step_ns, held_blocks=3))
            world.gaps.append(gap(first_ns + step_ns, output - 1, step_ns))
    return world


def best_of(queries: int, samples: int, *, seed: int = 0, gap_s: float = 1.0, step_ns: int = 10 * MS) -> World:
    """Queries that decode `samples` samples each, every query on a replica of its own."""
    rng = np.random.default_rng(seed)
    world, arrival_ns, request_id = World(), 0, 0
    for number in range(queries):
        arrival_ns += int(rng.exponential(gap_s) * S) + 1
        lengths = np.sort(rng.integers(20, 200, samples))
        first_ns = arrival_ns + int(rng.integers(20, 60)) * MS
        rows = []
        for sample, length in enumerate(lengths.tolist()):
            finish_ns = first_ns + (length - 1) * step_ns
            rows.append(
                request(
                    request_id,
                    number,
                    arrival_ns,
                    first_ns,
                    finish_ns,
                    sample=sample,
                    replica=number,
                    output_tokens=length,
                    max_tokens=200,
                )
            )
            request_id += 1
        world.requests += rows
        world.queries.append(query(number, rows))
        world.steps.append(
            step(
                arrival_ns,
                1,
                15 * MS,
                prefill_seqs=samples,
                prefill_tokens=32 * samples,
                running=samples,
                replica=number,
            )
        )
        done, start_ns = 0, first_ns
        for alive, length in zip(range(samples, 0, -1), lengths.tolist(), strict=True):
            if length - 1 > done:
                n = length - 1 - done
                world.steps.append(
                    step(start_ns, n, step_ns, decode_seqs=alive, running=alive, held_blocks=2 * alive, replica=number)
                )
                world.gaps.append(gap(start_ns + step_ns, n, step_ns, seqs=alive, replica=number))
                start_ns, done = start_ns + n * step_ns, length - 1
    return world
