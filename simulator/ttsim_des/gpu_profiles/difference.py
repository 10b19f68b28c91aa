"""Two profiles compared: table by table where both measured the same, and in the steps of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ttsim_des.gpu_profiles.curves import Floats, curves_of
from ttsim_des.latency.geometry import ModelGeometry
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.latency.shape import PrefillChunk, StepShape

BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (256, 2048, 16384)
PROMPTS = (128, 1024, 8192)
MIXED = (512, 32, 2048)
"""Tokens of the chunk, decodes beside it, their context."""
MAX_CONTEXT = 32768


def table_differences(first: GpuProfile, second: GpuProfile) -> list[dict[str, Any]]:
    """Points of `first` inside curves of `second`, read off by the line between its points; percent of `first`."""
    found = []
    for family in first.tables:
        for label in first.labels(family):
            if label not in second.labels(family):
                found.append({"family": family, "label": label, "points": 0})
                continue
            others = {curve.key: curve for curve in curves_of(second, family, label)}
            differences: list[Floats] = []
            points = 0
            for curve in curves_of(first, family, label):
                points += len(curve.x)
                other = others.get(curve.key)
                if other is not None:
                    inside = (curve.x >= other.x[0]) & (curve.x <= other.x[-1])
                    read = np.interp(curve.x[inside], other.x, other.us)
                    differences.append(100 * (read / curve.us[inside] - 1))
            every = np.concatenate(differences) if differences else np.empty(0)
            row: dict[str, Any] = {"family": family, "label": label, "points": points, "compared": len(every)}
            if len(every):
                size = np.abs(every)
                row |= {
                    "mean_pct": float(every.mean()),
                    "median_abs_pct": float(np.median(size)),
                    "p90_abs_pct": float(np.percentile(size, 90)),
                    "max_abs_pct": float(size.max()),
                }
            found.append(row)
    return found


def step_differences(
    first: GpuProfile, second: GpuProfile, geometry: ModelGeometry, tp: int, dtype: str, kv_dtype: str
) -> list[dict[str, Any]]:
    """Milliseconds of a model's steps with both profiles: decodes, prompts, and one mixed step."""
    models = [
        KernelStepModel(profile, geometry, tp, dtype, kv_dtype, max_context=MAX_CONTEXT, unequal_contexts=False)
        for profile in (first, second)
    ]
    shapes = {
        f"decode, {batch} x {context} tokens": StepShape(batch, batch * context, context, (), batch)
        for batch in BATCHES
        for context in CONTEXTS
    }
    shapes |= {f"prompt of {new} tokens": StepShape(0, 0, 0, (PrefillChunk(new, 0),), 1) for new in PROMPTS}
    new, seqs, context = MIXED
    shapes[f"mixed: {new} + {seqs} x {context} tokens"] = StepShape(
        seqs, seqs * context, context, (PrefillChunk(new, 0),), seqs + 1
    )
    found = []
    for name, shape in shapes.items():
        first_ms, second_ms = (model.step_ns(shape) / 1e6 for model in models)
        measured = all(model.in_domain(shape) for model in models)
        found.append(
            {
                "step": name,
                "first_ms": first_ms,
                "second_ms": second_ms,
                "difference_pct": 100 * (second_ms / first_ms - 1),
                "in_domain": measured,
            }
        )
    return found


def largest(tables: list[dict[str, Any]], steps: list[dict[str, Any]]) -> float:
    """The largest difference in percent of all that was compared."""
    found = [row["max_abs_pct"] for row in tables if "max_abs_pct" in row]
    return max([*found, *(abs(row["difference_pct"]) for row in steps)], default=0.0)
