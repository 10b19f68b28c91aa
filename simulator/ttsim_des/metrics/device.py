"""What the GPUs did in the window, from runs of steps in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from ttsim_des.metrics.columns import column, flags
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.runs import StepRuns, points
from ttsim_des.metrics.stats import FloatArray, IntArray, exact_sum
from ttsim_des.metrics.window import Window
from ttsim_des.records.tables import Tables
from ttsim_des.units import NS_PER_S


def device_sections(tables: Tables, runs: StepRuns, window: Window, context: RunContext) -> dict[str, Any]:
    """GPU busy share, batches, load, KV use and the share of steps outside the measured domain."""
    before = np.zeros_like(runs.start) if window.from_zero else runs.started_until(window.start_ns)
    count = runs.started_until(window.end_ns) - before
    device = runs.device_ns_until(window.end_ns)
    if not window.from_zero:
        device = device - runs.device_ns_until(window.start_ns)
    steps, device_ns = exact_sum(count), exact_sum(device)
    seqs = runs.column("decode_seqs") + runs.column("prefill_seqs")
    outside = exact_sum(count[~flags(runs.table, "in_domain")])
    replica_ns = window.length_ns * context.replicas
    return {
        "gpu": {"busy_share": device_ns / replica_ns if replica_ns else None, "busy_s": device_ns / NS_PER_S},
        "steps": {
            "count": steps,
            "mean_s": device_ns / steps / NS_PER_S if steps else None,
            "outside_domain_share": outside / steps if steps else None,
        },
        "batch": {
            "step_mean_seqs": exact_sum(count * seqs) / steps if steps else None,
            "time_mean_seqs": float((device.astype(np.float64) * seqs).sum()) / device_ns if device_ns else None,
        },
        "load": _load(tables, runs, window),
        "kv": _kv(runs, window, context),
    }


def _load(tables: Tables, runs: StepRuns, window: Window) -> dict[str, Any]:
    """Time means over the window, all replicas together."""
    queries, requests = tables.queries, tables.requests
    return {
        "mean_queries_in_system": _presence(
            column(queries, "arrival_ns"), column(queries, "finish_ns"), tables.end_ns, window
        ),
        "mean_requests_in_system": _presence(
            column(requests, "arrival_ns"), column(requests, "finish_ns"), tables.end_ns, window
        ),
        "mean_running": _time_mean(runs, window, runs.column("running")),
        "mean_waiting": _time_mean(runs, window, runs.column("waiting")),
    }


def _presence(arrival: IntArray, finish: IntArray, end_ns: int, window: Window) -> float | None:
    """Time mean of how many have arrived and not finished."""
    if window.length_ns == 0:
        return None
    left = np.where(finish >= 0, finish, end_ns)
    stay = np.minimum(left, window.end_ns) - np.maximum(arrival, window.start_ns)
    return exact_sum(np.maximum(stay, 0)) / window.length_ns


def _time_mean(runs: StepRuns, window: Window, value: IntArray, slope: FloatArray | None = None) -> float | None:
    if window.length_ns == 0:
        return None
    total = runs.integral_until(window.end_ns, value, slope)
    if not window.from_zero:
        total = total - runs.integral_until(window.start_ns, value, slope)
    return float(total.sum()) / window.length_ns


def held_growth(runs: StepRuns, block_size: int) -> FloatArray:
    """Blocks by which a run's held blocks grow per step: every decoding sequence adds a block in `block_size` steps."""
    return runs.column("decode_seqs") / block_size


def _kv(runs: StepRuns, window: Window, context: RunContext) -> dict[str, Any]:
    """Held KV blocks (referenced by running requests) as a share of all usable ones."""
    held, slope = runs.column("held_blocks"), held_growth(runs, context.block_size)
    all_blocks = context.usable_blocks * context.replicas
    mean = _time_mean(runs, window, held, slope)
    peak = None
    if runs.start.size:
        last = np.maximum(runs.started_until(window.end_ns) - 1, 0)
        over = points(runs.start, runs.period, runs.period_increment, runs.n) <= window.start_ns
        live = (runs.start <= window.end_ns) & ~over
        if live.any():
            top = np.minimum((held + slope * last)[live].max(), context.usable_blocks)
            peak = float(top) / context.usable_blocks
    return {
        "usable_blocks_per_replica": context.usable_blocks,
        "block_size": context.block_size,
        "mean_held_share": None if mean is None else min(mean / all_blocks, 1.0),
        "peak_held_share": peak,
    }
