"""What the figures draw, as arrays: no plotting here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ttsim_des.metrics.device import held_growth, tokens_per_step
from ttsim_des.metrics.gaps import Gaps
from ttsim_des.metrics.runs import StepRuns, points
from ttsim_des.metrics.stats import FloatArray, IntArray
from ttsim_des.records.tables import Tables
from ttsim_des.units import NS_PER_S

BINS: Final = 600
CDF_POINTS: Final = 1000
PIECES_PER_STRETCH: Final = 8


@dataclass(frozen=True, slots=True)
class OverTime:
    """Means over equal stretches of time, all replicas together; `edges_s` has one more entry than the others."""

    edges_s: FloatArray
    running: FloatArray
    waiting: FloatArray
    held_blocks: FloatArray


def cdf(values: IntArray | FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values and the share of observations at or below each, thinned to at most CDF_POINTS."""
    ordered = np.sort(values).astype(np.float64)
    picked = np.arange(ordered.size)
    if ordered.size > CDF_POINTS:
        picked = np.unique(np.linspace(0, ordered.size - 1, CDF_POINTS).round().astype(np.int64))
    return ordered[picked], (picked + 1) / max(ordered.size, 1)


def gap_cdf(gaps: Gaps) -> tuple[FloatArray, FloatArray]:
    """`cdf` of inter-token gaps in nanoseconds, by closed form at a grid of ranks."""
    count = gaps.count
    if not count:
        return np.zeros(0), np.zeros(0)
    shares = np.unique(np.concatenate([np.linspace(0, 1, 101), 1 - np.logspace(-2, -4, 21)]))
    ranks = np.unique(np.clip(np.ceil(shares * count), 1, count).astype(np.int64))
    return np.array(gaps.ranked(ranks.tolist()), dtype=np.float64), ranks / count


def over_time(tables: Tables, block_size: int, bins: int = BINS) -> OverTime:
    """Running, waiting and held blocks as means over `bins` stretches: exact areas, whatever the length of the run."""
    edges = np.linspace(0, max(tables.end_ns, 1), bins + 1).round().astype(np.int64)
    runs = StepRuns.of(tables.steps)
    # A long run is cut at its steps, so that each stretch gets its own share of the growth.
    growth = held_growth(runs, block_size / tokens_per_step(tables))
    start, length, values = _pieces(runs, growth, int(edges[1]) // PIECES_PER_STRETCH)
    widths = np.diff(edges)
    means = [_areas(start, length, value, edges) / widths for value in values]
    return OverTime(edges / NS_PER_S, *means)


def _pieces(runs: StepRuns, growth: FloatArray, piece_ns: int) -> tuple[IntArray, IntArray, tuple[FloatArray, ...]]:
    """Each run as one or more (start, length, values); no piece of several steps is longer than about `piece_ns`."""
    span_end = points(runs.start, runs.period, runs.period_increment, runs.n)
    parts = np.clip((span_end - runs.start) // max(piece_ns, 1) + 1, 1, runs.n)
    row = np.repeat(np.arange(runs.n.size), parts)
    part = np.arange(row.size) - np.repeat(np.cumsum(parts) - parts, parts)
    first = part * runs.n[row] // parts[row]
    after = (part + 1) * runs.n[row] // parts[row]

    def at(step: IntArray) -> IntArray:
        return points(runs.start[row], runs.period[row], runs.period_increment[row], step)

    limit = runs.next_start[row]  # a run lasts until the replica's next one at most
    begin, end = np.minimum(at(first), limit), np.minimum(at(after), limit)
    held = runs.column("held_blocks")[row] + growth[row] * (runs.passed[row] + (first + after - 1) / 2)
    running, waiting = (runs.column(name)[row].astype(np.float64) for name in ("running", "waiting"))
    return begin, end - begin, (running, waiting, held.astype(np.float64))


def _areas(start: IntArray, length: IntArray, value: FloatArray, edges: IntArray) -> FloatArray:
    """Area of value over [start, start + length) in each stretch between the edges."""
    times = np.concatenate([start, start + length])
    order = np.argsort(times, kind="stable")
    steps = np.concatenate([value, -value])[order]
    times = times[order].astype(np.float64)
    level = np.cumsum(steps)
    area = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(times))]) if times.size else np.zeros(0)
    if not times.size:
        return np.zeros(edges.size - 1)
    return np.diff(np.interp(edges.astype(np.float64), times, area))
