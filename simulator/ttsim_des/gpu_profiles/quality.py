"""How good the tables of a profile are: noise, gaps, and what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np

from ttsim_des.gpu_profiles.curves import Floats, curves_of
from ttsim_des.latency.geometry import EXPERT_BYTES
from ttsim_des.latency.profile import GpuProfile

FALL = 0.05
"""A point this much below the one before, for more work, counts as a fall."""
BEYOND = 1.05
"""So much above the data sheet is a wrong number somewhere."""
LARGE_BYTES = 1 << 27
"""Weights beyond any cache."""


def examined(profile: GpuProfile) -> list[dict[str, Any]]:
    """For each family and label: rows, error of leaving single points out (percent), and the share of falls."""
    found = []
    for family in profile.tables:
        for label in profile.labels(family):
            errors: list[Floats] = []
            falls = steps = rows = 0
            for curve in curves_of(profile, family, label):
                rows += len(curve.x)
                errors.append(_left_out(curve.x, curve.us))
                falls += int((curve.us[1:] < (1 - FALL) * curve.us[:-1]).sum())
                steps += len(curve.us) - 1
            every = np.concatenate(errors)
            found.append(
                {
                    "family": family,
                    "label": label,
                    "rows": rows,
                    "left_out_median_pct": _percent(every, 50),
                    "left_out_p90_pct": _percent(every, 90),
                    "left_out_max_pct": _percent(every, 100),
                    "falls_pct": 100 * falls / steps if steps else None,
                }
            )
    return found


def _left_out(x: Floats, us: Floats) -> Floats:
    """Relative errors of the line between the two neighbours, at every inner point."""
    if len(x) < 3:
        return np.empty(0)
    lines = us[:-2] + (us[2:] - us[:-2]) * (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    return np.abs(lines / us[1:-1] - 1)


def _percent(errors: Floats, percentile: float) -> float | None:
    return float(100 * np.percentile(errors, percentile)) if len(errors) else None


def impossible(profile: GpuProfile) -> list[str]:
    """What is faster than the data sheet allows, in words; products alone, since only their work is known."""
    meta = profile.meta
    found = []
    for label in profile.labels("gemm"):
        rows = profile.tables["gemm"][label]
        m, n, k, us = (rows[name].astype(np.float64) for name in ("m", "n", "k", "latency_us"))
        weights = n * k * EXPERT_BYTES[label]
        read = np.where(weights >= LARGE_BYTES, weights / us * 1e6, 0.0) / meta.bandwidth_bytes_per_s
        if read.max() > BEYOND:
            worst = int(read.argmax())
            found.append(
                f"{int((read > BEYOND).sum())} products in {label} read their weights faster than the memory's "
                f"bandwidth: {read[worst]:.2f} times at m = {m[worst]:.0f}, n = {n[worst]:.0f}, k = {k[worst]:.0f}"
            )
        if (peak := meta.peak_flops.get(label)) is None:
            found.append(f"peak_flops has no {label}, though products in it were measured")
            continue
        rate = 2e6 * m * n * k / us / peak
        if rate.max() > BEYOND:
            worst = int(rate.argmax())
            found.append(
                f"{int((rate > BEYOND).sum())} products in {label} compute faster than the peak: {rate[worst]:.2f} "
                f"times at m = {m[worst]:.0f}, n = {n[worst]:.0f}, k = {k[worst]:.0f}"
            )
    return found
