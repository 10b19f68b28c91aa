"""Speculation in a deployment: what vLLM's settings become, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_deployment import BASE, deployed, refused

from ttsim_des.deployment.speculation import METHODS
from ttsim_des.engine.speculation import SpeculationConfig
from ttsim_des.latency.drafters import Heads, Passes, SpeculativeStepModel
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.scenario.schema import Scenario

IID = {"process": "iid", "rate": 0.7}


def speculative(method: str = "eagle", drafts: int = 3, **more: Any) -> dict[str, Any]:
    return {"method": method, "num_speculative_tokens": drafts, "acceptance": IID, **more}


def of(method: str = "eagle", drafts: int = 3, **more: Any) -> Any:
    return deployed(engine__speculative=speculative(method, drafts, **more))


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("eagle", SpeculationConfig(3, 3, 0)),
        ("eagle3", SpeculationConfig(3, 3, 0)),
        ("mtp", SpeculationConfig(3, 3, 0)),
        ("medusa", SpeculationConfig(3, 0, 0)),
        ("ngram", SpeculationConfig(3, 0, 0)),
    ],
)
def test_what_the_scheduler_counts(method: str, config: SpeculationConfig) -> None:
    assert of(method).engine_config.speculation == config


def test_a_draft_model_takes_a_slot_and_memory() -> None:
    plain, drafting = deployed(), of("draft_model", model="Qwen3-0.6B")
    assert drafting.engine_config.speculation == SpeculationConfig(3, 3, 1)
    assert drafting.engine_config.num_gpu_blocks < 0.8 * plain.engine_config.num_gpu_blocks
    rows = {row.name: row for row in drafting.memory.rows}
    assert "drafter included" in rows["weights"].note
    assert isinstance(drafting.step_model, SpeculativeStepModel)
    assert isinstance(drafting.step_model.drafter, Passes)
    assert drafting.step_model.drafter.slots == 1


def test_drafters() -> None:
    assert isinstance(of("ngram").step_model, KernelStepModel)
    assert isinstance(of("medusa").step_model.drafter, Heads)
    assert of("eagle").step_model.drafter.gap_ns == METHODS["eagle"].layer_gap_us * 1000
    assert of("draft_model", model="Qwen3-0.6B").step_model.drafter.gap_ns == 28 * 30_000
    assert of("eagle", draft_gap_us=7.0).step_model.drafter.gap_ns == 7_000
    tree = of("eagle", 20, tree=[4, 8, 8])
    assert tree.step_model.drafter.tree == (4, 8, 8)
    assert tree.acceptance.most == 3


def test_drafts_that_depend_on_the_text_are_planned_synchronously() -> None:
    assert of("eagle").engine_config.async_scheduling
    assert not of("ngram").engine_config.async_scheduling
    assert not of("eagle", policy="oracle").engine_config.async_scheduling
    host = of("ngram").host
    assert host.update_step_ns == deployed().host.update_step_ns + 45_000


def test_vllms_table_of_batch_sizes() -> None:
    """Gaps and what lies beyond the table go on with the drafts before."""
    config = of(num_speculative_tokens_per_batch_size=[[1, 16, 3], [32, 128, 2], [129, 200, 9]]).engine_config
    assert config.speculation is not None
    drafts = [config.speculation.num_drafts_after(seqs) for seqs in (1, 16, 17, 31, 32, 128, 129, 1000)]
    assert drafts == [3, 3, 3, 3, 2, 2, 3, 3]  # never more than num_speculative_tokens


def test_the_adaptive_policy_drafts_less_in_large_batches() -> None:
    poor = {"process": "iid", "rate": 0.3}
    table = deployed(engine__speculative=speculative("eagle", 4, policy="adaptive", acceptance=poor)).engine_config
    assert table.speculation is not None
    drafts = [table.speculation.num_drafts_after(seqs) for seqs in (1, 64, 512, 1024)]
    assert drafts == sorted(drafts, reverse=True)
    assert drafts[-1] < 2
    good = {"process": "iid", "rate": 0.95}
    eager = deployed(engine__speculative=speculative("eagle", 4, policy="adaptive", acceptance=good)).engine_config
    assert eager.speculation is not None
    assert eager.speculation.num_drafts_after(1) == 4


def test_the_bound_of_check_knows_of_drafts() -> None:
    from ttsim_des.workload.expected import expected_work

    scenario = Scenario.model_validate(BASE)
    work = expected_work(scenario, Path())
    bounds = [each.best_throughput(scenario.workload, work) for each in (deployed(), of("eagle"))]
    assert bounds[1].output_tokens_per_s != bounds[0].output_tokens_per_s


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (speculative("draft_model", model="Qwen3-0.7B"), "engine.speculative.model"),
        (speculative(draft_tensor_parallel_size=2), "engine.speculative.draft_tensor_parallel_size"),
        (
            speculative(acceptance={"process": "recorded", "file": "none.csv"}),
            "engine.speculative.acceptance.file",
        ),
    ],
)
def test_refused(asked: dict[str, Any], key: str) -> None:
    assert key in refused(engine__speculative=asked)
