"""Measurements as a profile directory (docs/profiles.md): tables, and meta.toml with what was fitted from the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from profiler.machine import Machine
from profiler.points import Point
from profiler.timer import Measured
from ttsim_des.gpu_profiles.write import SCHEMA, best_line, replace_file, write_tables
from ttsim_des.latency.geometry import BYTES_PER_ELEMENT
from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.unequal import BLOCKS_PER_SM, SPLIT_SHARE, StreamRate, UnequalContexts

TABLES = ("gemm", "context_attention", "decode_attention", "all_reduce")
PASSES = {"norm": 4, "rotary": 2, "activation": 3}
"""How often an element-wise kernel moves its tokens x width elements, as latency/kernels.py counts."""
Points = Sequence[tuple[Point, Measured]]


class Fitted(NamedTuple):
    """The numbers of meta.toml, and how well they stand for what was measured (median and largest relative error)."""

    bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    link_bytes_per_s: float | None
    elementwise_share: float
    elementwise_launch_us: float
    elementwise_errors: tuple[float, float]
    stream: StreamRate | None
    stream_errors: tuple[float, float] | None
    host_step_us: float
    host_sequence_us: float


def fit(points: Points, copy_bytes_per_s: float, sms: int) -> Fitted:
    """What meta.toml says, from everything measured."""
    by_family: dict[str, list[tuple[Point, float]]] = {}
    for point, measured in points:
        by_family.setdefault(point.family, []).append((point, measured.latency_us))
    bandwidth = max([copy_bytes_per_s, *(_gemm_bytes_per_s(*each) for each in by_family["gemm"])])
    peaks: dict[str, float] = {}
    for point, latency_us in by_family["gemm"]:
        rate = 2e6 * point["m"] * point["n"] * point["k"] / latency_us
        peaks[point["dtype"]] = max(peaks.get(point["dtype"], 0.0), rate)
    launch_us, per_byte_us, errors = best_line(
        [(2.0 * PASSES[p["kind"]] * p["tokens"] * p["width"], us) for p, us in by_family["elementwise"]]
    )
    stream, stream_errors = _stream(by_family, bandwidth, sms)
    host = [(float(point["sequences"]), us) for point, us in by_family["host"]]
    host_us, sequence_us, _ = best_line(host)
    return Fitted(
        bandwidth,
        peaks,
        _link(by_family.get("all_reduce", [])),
        min(1.0, 1e6 / per_byte_us / bandwidth),
        launch_us,
        errors,
        stream,
        stream_errors,
        host_us,
        sequence_us,
    )


def _gemm_bytes_per_s(point: Point, latency_us: float) -> float:
    m, n, k = point["m"], point["n"], point["k"]
    return float(BYTES_PER_ELEMENT[point["dtype"]] * (m * k + n * k + m * n) / latency_us * 1e6)


def _link(points: Sequence[tuple[Point, float]]) -> float | None:
    """Bytes that a rank sends a second in the largest all-reduces: a ring sends 2 (r - 1) / r of the data."""
    rates = [p["bytes"] * 2 * (p["ranks"] - 1) / p["ranks"] / us * 1e6 for p, us in points]
    return max(rates) if rates else None


def _stream(
    families: Mapping[str, Sequence[tuple[Point, float]]], bandwidth: float, sms: int
) -> tuple[StreamRate | None, tuple[float, float] | None]:
    """The rate of one thread block, from batches of unequal contexts large enough not to be split."""
    from scipy.optimize import minimize_scalar

    unequal = families.get("unequal", [])
    chosen = [(p, us) for p, us in unequal if p["batch"] * p["kv_heads"] >= SPLIT_SHARE * BLOCKS_PER_SM * sms]
    if not chosen:
        return None, None
    decode: dict[int, dict[int, float]] = {}
    for point, us in families["decode_attention"]:
        same = all(point[name] == chosen[0][0][name] for name in ("kv_dtype", "head_dim", "kv_heads", "heads"))
        if same:
            decode.setdefault(point["batch"], {})[point["context"]] = us
    batches = []
    for point, us in chosen:
        nearest = min(decode, key=lambda batch: abs(batch - point["batch"]))
        row = sorted(decode[nearest].items())
        at = Curve(tuple(float(c) for c, _ in row), tuple(value for _, value in row), 0.0).at(point["mean"])
        batches.append((point["mean"], point["longest"], at * point["batch"] / nearest, us))
    token_bytes = 2 * chosen[0][0]["head_dim"] * BYTES_PER_ELEMENT[chosen[0][0]["kv_dtype"]]

    def errors(rate: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        term = UnequalContexts(StreamRate(sms, rate), 1, token_bytes, 1000)
        found = [t + term.exact_us(Curve((0.0,), (t,), 0.0), mean, longest) for mean, longest, t, _ in batches]
        off: np.ndarray[tuple[int], np.dtype[np.float64]] = np.abs(np.array(found) / [us for *_, us in batches] - 1)
        return off

    share = bandwidth / sms
    best = minimize_scalar(lambda rate: float(errors(rate).mean()), bounds=(0.1 * share, 20 * share), method="bounded")
    rate = float(f"{best.x:.4g}")
    final = errors(rate)
    return StreamRate(sms, rate, 0.0, True), (float(np.median(final)), float(final.max()))


def write_profile(out: Path, points: Points, fitted: Fitted, machine: Machine, notes: Mapping[str, str]) -> None:
    """Write tables and meta.toml, each at once or not at all; meta.toml last, so that a profile is whole or not one."""
    tables = {
        family: [{**dict(point.axes), "latency_us": m.latency_us} for point, m in points if point.family == family]
        for family in TABLES
    }
    spans = write_tables(out, tables)
    replace_file(out / "meta.toml", _meta(fitted, machine, notes, spans).encode())


def _meta(fitted: Fitted, machine: Machine, notes: Mapping[str, str], spans: Mapping[str, str]) -> str:
    """The text of meta.toml."""
    lines = [
        "# Written by tools/profile_gpu.py; format: docs/profiles.md. Points with their noise: measurements.jsonl.",
        f"schema = {SCHEMA}",
        f"device = {json.dumps(machine.device)}",
        f"memory_gib = {machine.memory_gib:.2f}",
        "# Measured: the fastest copy or product.",
        f"bandwidth_bytes_per_s = {fitted.bandwidth_bytes_per_s:.4g}",
    ]
    if fitted.link_bytes_per_s is not None:
        lines.append(f"link_bytes_per_s = {fitted.link_bytes_per_s:.4g}")
    lines += [f"{name} = {json.dumps(text)}" for name, text in notes.items()]
    lines += ["", "[peak_flops]", "# Measured: the fastest product."]
    lines += [f"{dtype} = {value:.4g}" for dtype, value in sorted(fitted.peak_flops.items())]
    lines += ["", "[software]", *(f"{name} = {json.dumps(text)}" for name, text in machine.software.items())]
    median, worst = fitted.elementwise_errors
    lines += [
        "",
        "[elementwise]",
        f"# Fitted to norms, rotary and activation: median error {median:.0%}, largest {worst:.0%}.",
    ]
    lines += [f"bandwidth_share = {fitted.elementwise_share:.3g}", f"launch_us = {fitted.elementwise_launch_us:.3g}"]
    if fitted.stream is not None and fitted.stream_errors is not None:
        median, worst = fitted.stream_errors
        lines += ["", "[unequal_contexts]", f"# Fitted: median error {median:.0%}, largest {worst:.0%}."]
        lines += [f"sms = {machine.sms}", f"stream_bytes_per_s = {fitted.stream.bytes_per_s:.4g}"]
    lines += [
        "",
        "[host_estimate]",
        "# For readers: inputs of a step prepared in Python. An engine's own host time comes on top.",
    ]
    lines += [f"step_us = {fitted.host_step_us:.4g}", f"sequence_us = {fitted.host_sequence_us:.3g}"]
    lines += ["", "[domain]", *(f"{name} = {span}" for name, span in spans.items()), ""]
    return "\n".join(lines)
