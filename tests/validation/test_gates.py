"""The bundled recordings within tolerances.toml, and wrong models beyond them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from ttsim_des.engine.core import EngineCore
from ttsim_des.engine.request_queue import FcfsQueue
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.shape import Run
from ttsim_des.validation.gates import Gate
from ttsim_des.validation.run import Validation, Variant, validate

HERE = Path(__file__).parent
RECORDED = HERE.parent / "recorded" / "vllm_cpu"
TOLERANCES = tomllib.loads((HERE / "tolerances.toml").read_text())


def broken(results: list[Validation], limits: dict[str, float]) -> list[str]:
    """Which gates do not hold."""
    gates = [Gate(name, limit) for name, limit in limits.items()]
    return [what for result in results for gate in gates if (what := gate.broken_by(result.metrics))]


@pytest.mark.parametrize("name", TOLERANCES)
def test_recordings_are_met(name: str) -> None:
    limits = TOLERANCES[name]
    results = list(validate(RECORDED / name))
    assert results
    assert broken(results, limits) == []


def slower(original: Callable) -> Callable:
    return lambda self, *shape: round(1.05 * original(self, *shape))


def slower_runs(original: Callable) -> Callable:
    def decode_run(self, shape, max_steps):
        run = original(self, shape, max_steps)
        return Run(1, round(1.05 * run.first_ns), 0, run.in_domain)

    return decode_run


def admits_while_preempting(original: Callable) -> Callable:
    def plan(self):
        plan, scheduler = original(self), self.scheduler
        if plan.preempted:
            budget = self.config.max_num_batched_tokens - self.num_seqs(plan)
            scheduler.schedule_waiting(plan, scheduler.prefill_threshold(), budget, self.num_seqs(plan))
        return plan

    return plan


WRONG = {
    "latency +5 %": (
        "golden/fanout16",
        [(AffineStepModel, "step_ns", slower), (AffineStepModel, "decode_run", slower_runs)],
    ),
    "LIFO admission": ("golden/poisson", [(FcfsQueue, "add", lambda _: FcfsQueue.put_back)]),
    "admission in a preempting step": ("golden/tree_kv", [(EngineCore, "plan", admits_while_preempting)]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_models_fail(wrong: str) -> None:
    recording, changes = WRONG[wrong]
    patches = [
        patch.object(owner, attribute, change(getattr(owner, attribute))) for owner, attribute, change in changes
    ]
    for one in patches:
        one.start()
    try:
        results = list(validate(RECORDED / recording))
    finally:
        for one in patches:
            one.stop()
    assert broken(results, TOLERANCES[recording])


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("golden/fanout16", Variant(no_prefix_caching=True)),
        ("golden/async_poisson", Variant(synchronous=True)),
    ],
    ids=["prefix cache off", "synchronous for asynchronous"],
)
def test_wrong_engines_fail(name: str, variant: Variant) -> None:
    assert broken(list(validate(RECORDED / name, variant)), TOLERANCES[name])
