"""Latency of a matrix product (m, k) x (k, n) from the measured shapes.

Between measured n and k the ratio of measured to roofline time is interpolated in log n and log k, so that the cost of
reading a larger matrix is right by construction and only the efficiency is guessed. Outside, the ratio of the
nearest measured size holds. Between measured m latency is linear; past the largest it is proportional to m.
"""

from __future__ import annotations

from ttsim_des.errors import bad_input
from ttsim_des.latency.geometry import BYTES_PER_ELEMENT
from ttsim_des.latency.interpolate import Curve, bracket, last_slope
from ttsim_des.latency.profile import GpuProfile


def gemm_curve(profile: GpuProfile, dtype: str, n: int, k: int) -> Curve:
    """Microseconds against m for weights of shape (k, n); InputError when nothing was measured for `dtype`."""
    sizes_n = profile.values("gemm", dtype, "n")
    if not sizes_n:
        measured = ", ".join(profile.labels("gemm"))
        raise bad_input(
            f"GPU profile {profile.meta.name} has no {dtype} matrix products", key="cluster.dtype", expected=measured
        )
    corners: list[tuple[int, int, float, Curve]] = []
    for near_n, weight_n in bracket(n, sizes_n, logarithmic=True):
        sizes_k = profile.values("gemm", dtype, "k", n=near_n)
        for near_k, weight_k in bracket(k, sizes_k, logarithmic=True):
            corners.append((near_n, near_k, weight_n * weight_k, _measured(profile, dtype, near_n, near_k)))
    rows_m = sorted({m for corner in corners for m in corner[3].x})
    latency_us = []
    for m in rows_m:
        ratio = sum(
            weight * curve.at(m) / _roofline_us(profile, dtype, m, near_n, near_k)
            for near_n, near_k, weight, curve in corners
        )
        latency_us.append(ratio * _roofline_us(profile, dtype, m, n, k))
    return Curve(tuple(rows_m), tuple(latency_us), latency_us[-1] / rows_m[-1])


def _measured(profile: GpuProfile, dtype: str, n: int, k: int) -> Curve:
    rows = profile.select("gemm", dtype, n=n, k=k)
    order = rows["m"].argsort()
    rows_m = tuple(rows["m"][order].tolist())
    latency_us = tuple(rows["latency_us"][order].tolist())
    return Curve(rows_m, latency_us, last_slope(rows_m, latency_us))


def _roofline_us(profile: GpuProfile, dtype: str, m: float, n: int, k: int) -> float:
    """The larger of arithmetic at peak and every byte moved once."""
    arithmetic_s = 2 * m * n * k / profile.meta.peak_flops[dtype]
    moved_s = BYTES_PER_ELEMENT[dtype] * (m * k + k * n + m * n) / profile.meta.bandwidth_bytes_per_s
    return 1e6 * max(arithmetic_s, moved_s)
