"""The product on a world: the one place here that knows the product's seams."""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import worlds

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.core import EngineCore
from ttsim_des.engine.scheduler import Scheduler
from ttsim_des.engine.speculation import RunDrafting, SpeculationConfig, TabledDrafting
from ttsim_des.latency.host import HostOverhead
from ttsim_des.scenario.schema import Scenario
from ttsim_des.simulation.run import simulate
from ttsim_des.timeline import Timeline
from ttsim_des.workload.handle import Delay
from ttsim_des.workload.queries import QueryInput, Verdict
from ttsim_des.workload.strategies import STRATEGIES

MOST_CPU_S = 3.0
NOT_IN_ORACLE = ("pool", "answer_id", "cause_request_id", "think_ns")
"""Columns of requests that the oracle does not make."""


SHORT_CUTS = {
    "leaps over as they begin": (EngineCore, "leap_on", lambda _: True),
    "samples admitted alike": (Scheduler, "_admit_twin", lambda is_admitted: is_admitted),
    "strategies woken at once": (Timeline, "advance", lambda _: True),
}
"""What is done in fewer steps than it is defined by: where, and whether what came back says that it was."""


@contextmanager
def counting(counts):
    """Count how often each short cut is taken."""

    def counted(name, original, is_taken):
        def call(*arguments):
            result = original(*arguments)
            counts[name] = counts.get(name, 0) + is_taken(result)
            return result

        return call

    with ExitStack() as stack:
        for name, (owner, method, is_taken) in SHORT_CUTS.items():
            wrapped = counted(name, getattr(owner, method), is_taken)
            stack.enter_context(patch.object(owner, method, wrapped))
        yield


class Source:
    """Prompts and lengths as the world says."""

    def __init__(self, world):
        self.queries = world["queries"]
        self.has_outcomes = world["bundled"] is not None

    def verdict(self, query_id, sample):
        worth = self.queries[query_id]["worth"]
        return Verdict(*worth[sample % len(worth)])

    def uniform(self, query_id, name, index):
        return worlds.uniform(query_id, name, index)

    def query(self, query_id):
        prompt = tuple(map(tuple, self.queries[query_id]["prompt"]))
        return QueryInput(query_id, prompt[-1][1], prompt)

    def output_tokens(self, query_id, sample):
        outputs = self.queries[query_id]["outputs"]
        return outputs[sample % len(outputs)]


class Acceptance:
    """What becomes of drafts as the world says."""

    def __init__(self, world):
        self.world = world

    def drafting(self, _streams, query_id, sample, output_tokens):
        accepts, proposes = worlds.luck(self.world, query_id, sample)
        if worlds.is_by_position(self.world):
            end = output_tokens + worlds.MOST_DRAFTS
            return RunDrafting(np.array([*(known for known in range(end) if not accepts[known]), end]), 64)
        return TabledDrafting(bytes(accepts[: output_tokens + 1]), proposes and bytes(proposes[: output_tokens + 1]))


def engine_config(world):
    """The world's engine as the product takes it."""
    asked = dict(world["engine"])
    speculation = asked.pop("speculation", None)
    if speculation is not None:
        by_batch_size = tuple(map(tuple, speculation["by_batch_size"]))
        asked["speculation"] = SpeculationConfig(**speculation | {"by_batch_size": by_batch_size})
    return EngineConfig(**asked)


def scripts(world):
    """The strategy that performs each query's script."""

    def play(query):
        asked = world["queries"][query.query_id]
        return worlds.play_script(asked["script"], asked["answer"], Delay)(query)

    return play


class Endless(Exception):  # noqa: N818
    """The product has gone on for longer than any world lasts."""


@contextmanager
def ended_within(cpu_s):
    """Raises Endless in a simulation that takes longer: a planted fault may let requests preempt for ever."""

    def stop(*_):
        raise Endless

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def simulated(world, stepping, model=None):
    """What `simulate` returns for the world."""
    count, strategy = len(world["queries"]), {"name": "script"}
    if world["bundled"]:
        strategy = world["bundled"]
    elif world["strategy"]:
        samples, first = world["strategy"]
        strategy = {"name": "best_of_n", "samples": samples, "first": first}
    concurrency = world["concurrency"]
    scenario = Scenario.model_validate(
        {
            "schema": 1,
            "name": "differential",
            "experiment": {"kind": "terminating", "queries": count},
            "workload": {
                "strategy": strategy,
                "arrivals": {"process": "together"}
                if concurrency is None
                else {"process": "closed_loop", "concurrency": concurrency},
                "prompt": {"distribution": "constant", "tokens": 1},
                "output": {"distribution": "constant", "tokens": 1},
                "max_tokens": world["max_tokens"],
            },
            "cluster": {"gpu": "none", "model": "none", "replicas": world["replicas"], "router": world["router"]},
            "engine": {"stepping": stepping},
            "client": {"turnaround_s": world["turnaround_ns"] / 1e9},
        }
    )
    deployment = SimpleNamespace(
        engine_config=engine_config(world),
        step_model=model or worlds.step_model(world),
        host=HostOverhead(*world["host"]),
        router=world["router"],
        replicas=world["replicas"],
        pools={},
        acceptance=Acceptance(world) if world["engine"].get("speculation") else None,
    )
    arrivals = None if concurrency is not None else iter([query["arrival_ns"] for query in world["queries"]])
    with patch.dict(STRATEGIES, {"script": scripts(world)}), ended_within(MOST_CPU_S):
        return simulate(scenario, deployment, Source(world), arrivals)


def facts(tables):
    """The record tables as plain tuples, runs expanded step by step; what the oracle's `facts` says."""
    return {
        "queries": rows(tables.queries.drop_columns(["answer_id", "critical_tokens"])),
        "requests": rows(tables.requests.drop_columns(list(NOT_IN_ORACLE))),
        "steps": list(expanded_steps(tables.steps)),
        "drafts": rows(tables.drafts.drop_columns(["pool"])),
        "gaps": expanded_gaps(tables.token_gaps),
        "end_ns": tables.end_ns,
    }


def rows(table):
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


_STEP_COLUMNS = (
    "decode_seqs prefill_seqs prefill_tokens draft_tokens running waiting preempted held_blocks cached_blocks in_domain"
)


def expanded_steps(table):
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    described = list(zip(*(columns[name] for name in _STEP_COLUMNS.split()), strict=True))
    for i, first_start_ns in enumerate(columns["start_ns"]):
        start_ns = first_start_ns
        for step in range(columns["steps"][i]):
            duration_ns = columns["duration_ns"][i] + step * columns["increment_ns"][i]
            yield (columns["replica"][i], start_ns, duration_ns, *described[i])
            start_ns += columns["period_ns"][i] + step * columns["period_increment_ns"][i]


def expanded_gaps(table):
    found = {}
    for _, replica, first_delivered_ns, steps, gap_ns, increment_ns, seqs, extra in rows(table):
        delivered_ns = first_delivered_ns
        for step in range(steps):
            gap = gap_ns + step * increment_ns
            if step:
                delivered_ns += gap
            before = found.get((replica, delivered_ns, gap), (0, 0))
            found[replica, delivered_ns, gap] = (before[0] + seqs, before[1] + extra)
    return sorted((*key, *counts) for key, counts in found.items())
