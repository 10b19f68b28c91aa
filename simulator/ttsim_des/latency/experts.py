"""Latency of the experts of a mixture of experts, of one rank: routing, permuting, both products, weighing.

Measured are whole fused kernels by tokens of a step, with tokens spread over experts by a power law of exponent 1.2
(1.01 and an even spread are also in NVIDIA's tables): how many experts a step touches, and how uneven they are loaded,
is in the measurement. Ranks share the experts (expert parallelism) or slice each one (tensor parallelism).
"""

from __future__ import annotations

from ttsim_des.errors import bad_input
from ttsim_des.latency.geometry import ModelGeometry
from ttsim_des.latency.interpolate import Curve, isotonic
from ttsim_des.latency.profile import GpuProfile


def experts_curve(profile: GpuProfile, geometry: ModelGeometry, dtype: str, tp: int, *, expert_parallel: bool) -> Curve:
    """Microseconds of one layer's experts against the tokens of a step; InputError where nothing was measured.

    Beyond the largest measured step, in proportion.
    """
    label = geometry.expert_dtype or dtype
    name = f"{geometry.name}'s {geometry.experts} {label} experts"
    if label not in profile.labels("moe"):
        measured = ", ".join(profile.labels("moe")) or "none"
        raise bad_input(
            f"GPU profile {profile.meta.name} has no {name}", key="cluster.model", expected=f"experts of {measured}"
        )
    shape = {
        "hidden": geometry.hidden,
        "intermediate": geometry.expert_intermediate,
        "experts": geometry.experts,
        "top_k": geometry.experts_per_token,
    }
    share = {"tp": 1, "ep": tp} if expert_parallel else {"tp": tp, "ep": 1}
    rows = profile.select("moe", label, **shape, **share)
    if not len(rows["latency_us"]):
        axis = "ep" if expert_parallel else "tp"
        sizes = profile.values("moe", label, axis, **shape, **{"tp" if expert_parallel else "ep": 1})
        how = "by whole experts" if expert_parallel else "by slices"
        raise bad_input(
            f"GPU profile {profile.meta.name} has no {name} shared {how} among {tp} GPUs",
            key="cluster.tp" if sizes else "cluster.model",
            expected=f"one of {', '.join(map(str, sizes))}" if sizes else "another GPU or model",
        )
    order = rows["tokens"].argsort()
    tokens = tuple(rows["tokens"][order].tolist())
    latency_us = isotonic(rows["latency_us"][order].tolist())
    return Curve(tokens, tuple(latency_us), latency_us[-1] / tokens[-1])
