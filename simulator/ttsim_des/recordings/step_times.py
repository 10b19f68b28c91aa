"""Step times of a recorded run: fitted to a model, and compared with one shape by shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsim_des.errors import bad_input
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.batch_table import BatchTableStepModel
from ttsim_des.latency.interpolate import Curve, last_slope
from ttsim_des.latency.shape import StepModel, StepShape
from ttsim_des.recordings.recording import RecordedStep

FEWEST_STEPS = 5
"""Of a batch, for a line of its own."""


def fit_step_times(steps: Sequence[RecordedStep], where: str, scale: float = 1.0) -> tuple[StepModel, dict[str, Any]]:
    """The model nearest to the measured steps by relative error, times `scale`, and what it consists of.

    InputError (at `where`) when there are too few steps with and without prompts.
    """
    shapes, took_ns = [step.shape for step in steps], scale * recorded_ns(steps)
    mixed = [index for index, shape in enumerate(shapes) if shape.prefill_chunks]
    by_batch: dict[int, list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        if not shape.prefill_chunks:
            by_batch[shape.decode_seqs].append(index)
    batches = sorted(size for size, members in by_batch.items() if len(members) >= FEWEST_STEPS)
    if not batches or len(mixed) < FEWEST_STEPS:
        raise bad_input(
            "too few steps to fit step times to",
            where=where,
            expected="decodes of several batches, and prompts",
        )
    lines = [_line(shapes, took_ns, by_batch[size]) for size in batches]
    affine = _affine([shapes[index] for index in mixed], took_ns[mixed])
    base, slope = (_curve(batches, [line[part] for line in lines]) for part in (0, 1))
    described = {
        "batches": f"{batches[0]} to {batches[-1]}",
        **{name: round(value, 3) for name, value in affine.items()},
    }
    return BatchTableStepModel(base, slope, AffineStepModel(**affine)), described


def recorded_ns(steps: Sequence[RecordedStep]) -> NDArray[np.float64]:
    """How long each step took."""
    return np.array([step.end_ns - step.start_ns for step in steps], dtype=np.float64)


def step_errors(model: StepModel, steps: Sequence[RecordedStep]) -> dict[str, dict[str, float | None]]:
    """The recorded schedule with the model's step times: how far off they are, without any feedback on the schedule."""
    measured = recorded_ns(steps) / 1e9
    simulated = np.array([model.step_ns(shape) for _, _, shape in steps]) / 1e9
    ratio = simulated / measured - 1
    total = 100 * (simulated.sum() / measured.sum() - 1)
    return {
        "steps_s.sum": {
            "measured": float(measured.sum()),
            "simulated": float(simulated.sum()),
            "error_pct": float(total),
        },
        "step_median_error_pct": {"measured": 0.0, "simulated": 100 * float(np.median(ratio)), "error_pct": None},
        "step_mae_pct": {"measured": 0.0, "simulated": 100 * float(np.abs(ratio).mean()), "error_pct": None},
    }


def _line(shapes: list[StepShape], took_ns: NDArray[np.float64], members: list[int]) -> tuple[float, float]:
    """Nanoseconds at no context and per token of mean context, of one batch; never falling."""
    context = np.array([shapes[index].decode_ctx_sum / shapes[index].decode_seqs for index in members])
    times = took_ns[members]
    if np.ptp(context) > 0:
        slope, base = np.polyfit(context, times, 1)
        if slope > 0 and base > 0:
            return float(base), float(slope)
    return float(np.median(times)), 0.0


def _affine(shapes: list[StepShape], took_ns: NDArray[np.float64]) -> dict[str, float]:
    from scipy.optimize import nnls

    causes = np.array(
        [
            (
                1,
                shape.tokens,
                shape.decode_ctx_sum,
                sum(new * computed + new * (new + 1) // 2 for new, computed in shape.prefill_chunks),
            )
            for shape in shapes
        ],
        dtype=np.float64,
    )
    found, _ = nnls(causes / took_ns[:, None], np.ones(len(took_ns)))
    names = ("constant_ns", "per_token_ns", "per_decode_ctx_token_ns", "per_prefill_qk_pair_ns")
    return {name: round(float(value), 3) for name, value in zip(names, found, strict=True)}


def _curve(batches: list[int], values: list[float]) -> Curve:
    return Curve(tuple(map(float, batches)), tuple(values), last_slope(batches, values))
