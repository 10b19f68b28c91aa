"""What a profile holds, and which bundled models it can time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ttsim_des import assets
from ttsim_des.errors import InputError
from ttsim_des.gpu_profiles.curves import axis_of, keys_of
from ttsim_des.latency.geometry import load_geometry
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import GpuProfile

DEGREES = (1, 2, 4, 8)


def described(profile: GpuProfile) -> dict[str, Any]:
    """Meta data, and the rows and ranges of each table, as JSON."""
    meta = profile.meta
    return {
        "name": meta.name,
        "device": meta.device,
        "memory_gib": meta.memory_gib,
        "bandwidth_gb_per_s": meta.bandwidth_bytes_per_s / 1e9,
        "link_gb_per_s": None if meta.link_bytes_per_s is None else meta.link_bytes_per_s / 1e9,
        "peak_tflops": {dtype: peak / 1e12 for dtype, peak in meta.peak_flops.items()},
        "elementwise": {"bandwidth_share": meta.elementwise_bandwidth_share, "launch_us": meta.elementwise_launch_us},
        "unequal_contexts": {
            "sms": meta.kv_stream.sms,
            "stream_gb_per_s": meta.kv_stream.bytes_per_s / 1e9,
            "is_measured": meta.kv_stream.is_measured,
        },
        "source": meta.source,
        "licence": meta.licence,
        "date": meta.date,
        "tables": [
            {"family": family, "label": label, **_ranges(profile, family, label)}
            for family in profile.tables
            for label in profile.labels(family)
        ],
    }


def _ranges(profile: GpuProfile, family: str, label: str) -> dict[str, Any]:
    columns = profile.tables[family][label]
    names = (*keys_of(family), axis_of(family))
    return {
        "rows": len(columns["latency_us"]),
        "ranges": {name: [int(columns[name].min()), int(columns[name].max())] for name in names},
    }


def servable(profile: GpuProfile, dtype: str, kv_dtype: str) -> dict[str, dict[str, list[int] | str]]:
    """For each bundled model the tensor-parallel degrees that can be timed, or why none can.

    A model with experts has two entries: its experts sliced, and (`+ep`) shared whole.
    """
    found: dict[str, dict[str, list[int] | str]] = {}
    for name in assets.names("models"):
        geometry = load_geometry(name, Path())
        for expert_parallel in (False, True) if geometry.experts else (False,):
            degrees: list[int] = []
            reason = ""
            for tp in DEGREES:
                if geometry.heads % tp or (expert_parallel and tp == 1):
                    continue
                try:
                    KernelStepModel(
                        profile, geometry, tp, dtype, kv_dtype, max_context=4096, expert_parallel=expert_parallel
                    )
                except InputError as error:
                    reason = reason or error.problems[0].message
                else:
                    degrees.append(tp)
            found[f"{name}+ep" if expert_parallel else name] = {"tp": degrees, "why": "" if degrees else reason}
    return found
