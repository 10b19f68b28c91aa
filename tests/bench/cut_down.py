"""Cases cut down to what a test can afford, and a step model that counts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ttsim_des import api
from ttsim_des.latency.shape import Run, StepModel, StepShape

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench.py"
CUTS = {
    "tts": ["experiment.queries=40", "workload.output.mean=400"],
    "reasoning": ["experiment.queries=12", "workload.output.mean=500", "workload.arrivals.rate_per_s=0.8"],
    "chat": ["experiment.queries=400"],
    "pressure": [
        "experiment.queries=10",
        "workload.arrivals.rate_per_s=1000",
        "workload.output.mean=500",
        "workload.output.max=3000",
        "workload.max_tokens=3000",
        "engine.num_gpu_blocks=260",
    ],
    "million": ["experiment.queries=20", "workload.output.mean=300"],
    "spec": ["experiment.queries=40", "workload.output.mean=400"],
}


class CountingModel:
    """A step model that counts how often it is asked."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self.runs = self.steps = 0

    def step_ns(self, shape: StepShape) -> int:
        self.steps += 1
        return self._model.step_ns(shape)

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        self.runs += 1
        return self._model.decode_run(shape, max_steps)

    def in_domain(self, shape: StepShape) -> bool:
        return self._model.in_domain(shape)


class Counted(NamedTuple):
    """A finished run and the questions that it asked of the step model."""

    result: api.Result
    counts: dict[str, float]
    model: CountingModel
