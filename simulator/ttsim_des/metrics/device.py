"""What the GPUs did in the window, from runs of steps in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.runs import StepRuns, points
from ttsim_des.metrics.stats import FloatArray, IntArray, exact_sum
from ttsim_des.metrics.window import Window
from ttsim_des.records.store import row_slices
from ttsim_des.records.tables import GENERATOR, Tables
from ttsim_des.units import NS_PER_S


@dataclass(slots=True)
class _Sums:
    """What the runs of steps of a table add up to in the window."""

    steps: int = 0
    device_ns: int = 0
    outside: int = 0
    seq_steps: int = 0
    seq_ns: float = 0.0
    running_ns: float = 0.0
    waiting_ns: float = 0.0
    held_ns: float = 0.0
    peak_held: float | None = None
    peak_running: int | None = None
    peak_tokens: int | None = None

    def add(self, runs: StepRuns, window: Window, steps_per_block: float) -> None:
        """Add some more runs; a decoding sequence takes a block every `steps_per_block` steps."""
        ended = runs.started_until(window.end_ns)
        before = np.zeros_like(runs.start) if window.from_zero else runs.started_until(window.start_ns)
        count = ended - before
        device = runs.device_ns_until(window.end_ns)
        if not window.from_zero:
            device = device - runs.device_ns_until(window.start_ns)
        seqs = runs.column("decode_seqs") + runs.column("prefill_seqs")
        if len(runs.start):
            tokens = runs.column("decode_seqs") + runs.column("prefill_tokens") + runs.column("draft_tokens")
            self.peak_running = max(self.peak_running or 0, int(runs.column("running").max()))
            self.peak_tokens = max(self.peak_tokens or 0, int(tokens.max()))
        self.steps += exact_sum(count)
        self.device_ns += exact_sum(device)
        self.outside += exact_sum(count[runs.column("in_domain") == 0])
        self.seq_steps += exact_sum(count * seqs)
        self.seq_ns += float((device.astype(np.float64) * seqs).sum())
        if window.length_ns:
            self.running_ns += _integral(runs, window, runs.column("running"))
            self.waiting_ns += _integral(runs, window, runs.column("waiting"))
            slope = held_growth(runs, steps_per_block)
            held = runs.column("held_blocks") + slope * runs.passed
            self.held_ns += _integral(runs, window, held, slope)
            last = np.maximum(ended - 1, 0)
            over = points(runs.start, runs.period, runs.period_increment, runs.n) <= window.start_ns
            live = (runs.start <= window.end_ns) & ~over
            if live.any():
                self.peak_held = max(self.peak_held or 0.0, float((held + slope * last)[live].max()))


def device_sections(tables: Tables, window: Window, context: RunContext, pool: str = GENERATOR) -> dict[str, Any]:
    """GPU busy share, batches, load, KV use and the share of steps outside the measured domain, of one pool.

    Only the time means of queries and requests in the system are of all pools.
    """
    sums = _Sums()
    for runs in StepRuns.chunks(tables.steps_of(pool)):
        sums.add(runs, window, context.block_size / tokens_per_step(tables, pool))
    replica_ns = window.length_ns * context.replicas
    steps, device_ns = sums.steps, sums.device_ns
    return {
        "gpu": {"busy_share": device_ns / replica_ns if replica_ns else None, "busy_s": device_ns / NS_PER_S},
        "steps": {
            "count": steps,
            "mean_s": device_ns / steps / NS_PER_S if steps else None,
            "outside_domain_share": sums.outside / steps if steps else None,
        },
        "batch": {
            "step_mean_seqs": sums.seq_steps / steps if steps else None,
            "time_mean_seqs": sums.seq_ns / device_ns if device_ns else None,
            "peak_running": sums.peak_running,
            "peak_tokens": sums.peak_tokens,
        },
        "load": _load(tables, sums, window),
        "kv": _kv(sums, window, context),
    }


def _load(tables: Tables, sums: _Sums, window: Window) -> dict[str, Any]:
    """Time means over the window, all replicas together."""
    queries, requests = tables.queries, tables.requests
    return {
        "mean_queries_in_system": _presence(
            column(queries, "arrival_ns"), column(queries, "finish_ns"), tables.end_ns, window
        ),
        "mean_requests_in_system": _presence(
            column(requests, "arrival_ns"), column(requests, "finish_ns"), tables.end_ns, window
        ),
        "mean_running": sums.running_ns / window.length_ns if window.length_ns else None,
        "mean_waiting": sums.waiting_ns / window.length_ns if window.length_ns else None,
    }


def _presence(arrival: IntArray, finish: IntArray, end_ns: int, window: Window) -> float | None:
    """Time mean of how many have arrived and not finished."""
    if window.length_ns == 0:
        return None
    total_ns = 0
    for part in row_slices(arrival.size):
        left = np.where(finish[part] >= 0, finish[part], end_ns)
        stay = np.minimum(left, window.end_ns) - np.maximum(arrival[part], window.start_ns)
        total_ns += exact_sum(np.maximum(stay, 0))
    return total_ns / window.length_ns


def _integral(runs: StepRuns, window: Window, value: IntArray | FloatArray, slope: FloatArray | None = None) -> float:
    """Time integral of a value over the window."""
    total = runs.integral_until(window.end_ns, value, slope)
    if not window.from_zero:
        total = total - runs.integral_until(window.start_ns, value, slope)
    return float(total.sum())


def held_growth(runs: StepRuns, steps_per_block: float) -> FloatArray:
    """Blocks by which the held ones grow from step to step: a decoding sequence takes one every so many steps."""
    return runs.column("decode_seqs") / steps_per_block


def tokens_per_step(tables: Tables, pool: str = GENERATOR) -> float:
    """Mean tokens of a step of a sequence: one, and the drafts that are accepted."""
    if not tables.drafts.num_rows:
        return 1.0
    drafts = tables.drafts
    mine = is_in(drafts, "pool", pool)
    firsts = exact_sum(column(drafts, "drafted")[mine & (column(drafts, "position") == 1)])
    return 1 + exact_sum(column(drafts, "accepted")[mine]) / firsts if firsts else 1.0


def _kv(sums: _Sums, window: Window, context: RunContext) -> dict[str, Any]:
    """Held KV blocks (referenced by running requests) as a share of all usable ones."""
    all_blocks = context.usable_blocks * context.replicas
    mean = sums.held_ns / window.length_ns if window.length_ns else None
    peak = None if sums.peak_held is None else min(sums.peak_held, context.usable_blocks) / context.usable_blocks
    return {
        "usable_blocks_per_replica": context.usable_blocks,
        "block_size": context.block_size,
        "mean_held_share": None if mean is None else min(mean / all_blocks, 1.0),
        "peak_held_share": peak,
    }
