"""What holds in every simulation: set-up order is of no account, draws are common, nothing is stuck or left over."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from random import Random

import pytest
from sim_rig import MS, Source, world

from ttsim_des import api
from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.replica import Replica
from ttsim_des.errors import InputError, NotValidError
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.host import HostOverhead
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.rng import Streams
from ttsim_des.router import make_router
from ttsim_des.scenario.schema import Workload
from ttsim_des.simulation.client import Client
from ttsim_des.simulation.collect import Collector
from ttsim_des.simulation.pool import Pool
from ttsim_des.timeline import Phase, Timeline
from ttsim_des.workload.queries import QuerySource
from ttsim_des.workload.strategies import best_of_n

# ---- order of set-up ----


def workload(samples: int, **tables) -> Workload:
    return Workload.model_validate(
        {
            "strategy": {"name": "best_of_n", "samples": samples, "first": 2},
            "arrivals": {"process": "together"},
            "prompt": {"distribution": "constant", "tokens": 9},
            "output": {"distribution": "constant", "tokens": 5},
            "max_tokens": 1_000,
        }
        | tables
    )


def run_in_order(order: tuple[int, ...], stepping: str) -> tuple:
    """Four queries of three samples, all due at 0 on two replicas, put on the timeline in this order."""
    timeline = Timeline()
    outputs = [[5, 7, 12], [9, 9, 9], [6, 12, 13], [1, 9, 14]]
    recorders = [StepRecorder("generator", index) for index in range(2)]
    collector = Collector(["generator"], recorders)
    client = Client(workload(3), best_of_n, Source([9, 9, 12, 7], outputs), timeline, 0, collector.on_answer)
    config = EngineConfig(num_gpu_blocks=10, block_size=4, max_num_seqs=5)
    model = AffineStepModel(constant_ns=MS)
    replicas = [
        Replica(index, config, model, HostOverhead(), timeline, client, recorder, stepping)
        for index, recorder in enumerate(recorders)
    ]
    client.pools = {"generator": Pool("generator", make_router("least_loaded", 2), replicas, 0, timeline)}
    for query_id in order:
        timeline.at(0, Phase.REACTION, query_id, lambda _, query_id=query_id: client.start_query(query_id))
    timeline.run()
    tables = collector.tables(client.open_runs, 0)
    return tables.queries, tables.requests, tables.steps, tables.token_gaps


@pytest.mark.parametrize("stepping", ["leap", "step"])
def test_the_order_of_set_up_changes_nothing(stepping: str) -> None:
    expected = run_in_order((0, 1, 2, 3), stepping)
    assert sum(expected[1]["preemptions"].to_pylist()) > 0
    for order in permutations(range(4)):
        found = run_in_order(order, stepping)
        assert all(one.equals(other) for one, other in zip(found, expected, strict=True)), order


def test_at_one_instant_phases_come_in_order_whatever_was_set_up_first() -> None:
    for order in permutations(Phase):
        timeline, seen = Timeline(), []
        for phase in order:
            for key in (2, 1):
                timeline.at(5, phase, key, lambda _, what=(phase, key), seen=seen: seen.append(what))
        timeline.run()
        assert seen == [(phase, key) for phase in Phase for key in (1, 2)]


# ---- common random numbers ----


@pytest.mark.parametrize("output", ["lognormal", "table"])
def test_samples_of_four_are_the_first_of_eight(output: str, tmp_path: Path) -> None:
    table = {"distribution": "lognormal", "mean": 300, "query_sigma": 0.5, "sample_sigma": 0.4}
    if output == "table":
        rows = "".join(f"{problem},{10 * problem + row}\n" for problem in range(1, 6) for row in range(12))
        (tmp_path / "lengths.csv").write_text("problem,tokens\n" + rows)
        table = {"distribution": "table", "file": "lengths.csv", "column": "tokens", "problem_column": "problem"}
    sources = {
        samples: QuerySource(workload(samples, output=table), Streams(3), tmp_path, queries=50) for samples in (4, 8)
    }
    four, eight = (
        [[source.output_tokens(query, sample) for sample in range(samples)] for query in range(50)]
        for samples, source in sources.items()
    )
    assert four == [row[:4] for row in eight]
    assert len({tuple(row) for row in four}) > 4


def scenario_file(folder: Path, **changes: object) -> Path:
    """A small scenario on the affine model."""
    said = {
        "queries": 12,
        "samples": 4,
        "max_tokens": 60,
        "prompt": 20,
        "mean": 30,
        "arrivals": 'process = "poisson"\nrate_per_s = 40.0',
        "engine": "",
        "seed": 1,
    } | changes
    path = folder / "world.toml"
    path.write_text(f"""schema = 1
name = "world"
seed = {said["seed"]}
[experiment]
kind = "terminating"
queries = {said["queries"]}
[workload]
max_tokens = {said["max_tokens"]}
[workload.strategy]
name = "best_of_n"
samples = {said["samples"]}
[workload.arrivals]
{said["arrivals"]}
[workload.prompt]
distribution = "constant"
tokens = {said["prompt"]}
[workload.output]
distribution = "lognormal"
mean = {said["mean"]}
query_sigma = 0.5
sample_sigma = 0.5
[cluster]
gpu = "h100-sxm"
model = "Llama-3.1-8B"
[engine]
{said["engine"]}
[latency]
model = "affine"
[latency.affine]
constant_us = 1000.0
per_token_us = 3.0
per_decode_ctx_token_us = 0.01
""")
    return path


def test_a_run_with_more_samples_asks_the_same_queries_at_the_same_times(tmp_path: Path) -> None:
    four, eight = (api.run(scenario_file(tmp_path, samples=samples)).tables for samples in (4, 8))
    assert four.queries["arrival_ns"].equals(eight.queries["arrival_ns"])
    lengths = [
        {
            (row["query_id"], row["sample"]): row["output_tokens"]
            for row in tables.requests.to_pylist()
            if row["sample"] < 4
        }
        for tables in (four, eight)
    ]
    assert lengths[0] == lengths[1]
    assert four.queries["finish_ns"].to_pylist() != eight.queries["finish_ns"].to_pylist()


# ---- nothing is stuck, nothing is left ----


def test_whatever_is_accepted_comes_to_an_end_with_an_empty_engine(tmp_path: Path) -> None:
    random, refused, finished, preemptions = Random(5), 0, 0, 0
    for _ in range(60):
        seqs = random.choice([1, 2, 8])
        engine = {
            "num_gpu_blocks": random.choice([6, 12, 24, 60]),
            "block_size": random.choice([1, 4, 16]),
            "max_num_seqs": seqs,
            "max_num_batched_tokens": random.choice([seqs, 16, 64, 256]),
            "max_model_len": random.choice([60, 100, 131_072]),
            "watermark": random.choice([0.0, 0.2, 1.0]),
            "enable_chunked_prefill": random.choice(["true", "true", "false"]),
            "enable_prefix_caching": random.choice(["true", "false"]),
            "async_scheduling": random.choice(["true", "false"]),
            "scheduler_reserve_full_isl": random.choice(["true", "false"]),
            "scheduling_policy": random.choice(['"fcfs"', '"priority"']),
            "long_prefill_token_threshold": random.choice([0, 0, 5]),
            "stepping": random.choice(['"leap"', '"step"']),
        }
        path = scenario_file(
            tmp_path,
            queries=5,
            seed=random.randrange(1_000),
            prompt=random.choice([1, 16, 33]),
            max_tokens=random.choice([4, 40]),
            arrivals=random.choice(
                [
                    'process = "together"',
                    'process = "closed_loop"\nconcurrency = 2',
                    'process = "poisson"\nrate_per_s = 30.0',
                ]
            ),
            engine="\n".join(f"{key} = {value}" for key, value in engine.items()),
        )
        try:
            result = api.run(path)
        except InputError:
            refused += 1
            continue
        except NotValidError as error:
            raise AssertionError(path.read_text()) from error
        assert set(result.tables.requests["status"].to_pylist()) == {"finished"}
        assert result.check_laws() == [], path.read_text()
        preemptions += sum(result.tables.requests["preemptions"].to_pylist())
        finished += 1
    assert min(refused, finished) >= 15
    assert preemptions > 0


def test_a_prompt_beyond_the_budget_is_refused_when_chunks_are_off(tmp_path: Path) -> None:
    # max_model_len is the model's here: nobody could rule out a longer prompt, or a longer resumed one.
    engine = "max_num_seqs = 8\nmax_num_batched_tokens = 16\nenable_chunked_prefill = false"
    with pytest.raises(InputError, match="without chunked prefill"):
        api.run(scenario_file(tmp_path, engine=engine))


def test_a_request_that_an_empty_engine_cannot_hold_breaks_an_invariant_instead_of_hanging() -> None:
    # Scenarios are checked before; here the engine is given such a request behind their back.
    for settings in ({}, {"async_scheduling": True}):
        with pytest.raises(NotValidError, match="KV blocks"):
            world([17], [[1]], usable_blocks=4, **settings)
