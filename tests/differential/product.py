"""The product on a world: the one place here that knows the product's seams."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import worlds

from ttsim_des.engine.config import EngineConfig
from ttsim_des.latency.host import HostOverhead
from ttsim_des.scenario.schema import Scenario
from ttsim_des.simulation.run import simulate
from ttsim_des.workload.handle import Delay
from ttsim_des.workload.queries import QueryInput
from ttsim_des.workload.strategies import STRATEGIES

MOST_CPU_S = 3.0


class Source:
    """Prompts and outcomes as the world says."""

    def __init__(self, world):
        self.queries = world["queries"]

    def query(self, query_id):
        prompt = tuple(map(tuple, self.queries[query_id]["prompt"]))
        return QueryInput(query_id, prompt[-1][1], prompt)

    def output_tokens(self, query_id, sample):
        outputs = self.queries[query_id]["outputs"]
        return outputs[sample % len(outputs)]


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
    if world["strategy"]:
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
        engine_config=EngineConfig(**world["engine"]),
        step_model=model or worlds.step_model(world),
        host=HostOverhead(*world["host"]),
    )
    arrivals = None if concurrency is not None else iter([query["arrival_ns"] for query in world["queries"]])
    with patch.dict(STRATEGIES, {"script": scripts(world)}), ended_within(MOST_CPU_S):
        return simulate(scenario, deployment, Source(world), arrivals)


def facts(tables):
    """The record tables as plain tuples, runs expanded step by step; what the oracle's `facts` says."""
    return {
        "queries": rows(tables.queries),
        "requests": rows(tables.requests.drop_columns(["pool"])),
        "steps": list(expanded_steps(tables.steps)),
        "gaps": expanded_gaps(tables.token_gaps),
        "end_ns": tables.end_ns,
    }


def rows(table):
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


_STEP_COLUMNS = "decode_seqs prefill_seqs prefill_tokens running waiting preempted held_blocks cached_blocks in_domain"


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
    for _, replica, first_delivered_ns, steps, gap_ns, increment_ns, seqs in rows(table):
        delivered_ns = first_delivered_ns
        for step in range(steps):
            gap = gap_ns + step * increment_ns
            if step:
                delivered_ns += gap
            found[replica, delivered_ns, gap] = found.get((replica, delivered_ns, gap), 0) + seqs
    return sorted((*key, seqs) for key, seqs in found.items())
