"""One profile from the first point to the verdict: what is measured when, what is refined, what is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from profiler import machine as machines
from profiler.backends import Attention
from profiler.collectives import measured_collectives
from profiler.journal import Journal
from profiler.kernels import Bench
from profiler.points import Curve, Domain, Needs, Point, collectives, curves, evidence, kv_bytes
from profiler.refine import HeldOut, leave_one_out, refine
from profiler.timer import Effort, Measured
from profiler.write import Fitted, Points, fit, write_profile

DEPTH_QUICK, DEPTH_FULL = 1, 3
DRIFT = 0.05
"""A point measured again and off by more: the clock has changed (heat, power, a neighbour)."""
SENTINEL_SECONDS = 60.0
RATES = {"cuda": (2e12, 2e14), "cpu": (1e10, 5e10)}
"""For estimates before anything is measured: bytes and operations a second."""


class Survey:
    """Measures everything that `needs` asks for within `domain`."""

    def __init__(
        self,
        torch: Any,
        device: str,
        attention: Attention,
        effort: Effort,
        needs: Needs,
        domain: Domain,
        model: str,
        *,
        quick: bool,
    ) -> None:
        self._torch, self._device, self._attention, self._effort = torch, device, attention, effort
        self._needs, self._domain, self._model, self._quick = needs, domain, model, quick
        self._bench = Bench(torch, device, attention, effort, domain.memory_bytes)
        self._drifts: list[float] = []
        self._sentinel: tuple[Point, float, float] | None = None  # the point, what it took at first, when it was asked

    def run(self, out: Path, *, restart: bool) -> int:
        """Measure, write the profile to `out`, print the verdict; returns the exit code."""
        found = machines.machine(self._torch, self._device)
        header = {
            "device": found.device,
            "torch": found.software["torch"],
            "attention": self._attention.name,
            "model": self._model,
        }
        path = out / "measurements.jsonl"
        if restart:
            path.unlink(missing_ok=True)
        self._journal = Journal(path, header)
        before = machines.gpu_state()
        if self._journal.resumed:
            print(f"going on: {self._journal.resumed} points were measured before", file=sys.stderr)
        grid = list(curves(self._needs, self._domain, quick=self._quick))
        others = evidence(self._needs, self._domain, quick=self._quick, has_lengths=self._attention.has_lengths)
        ranks = collectives(self._needs, self._domain)
        with self._progress() as progress:
            total = sum(len(curve.points) for curve in grid) + len(others) + len(ranks)
            self._task, self._bar = progress.add_task("", total=total), progress
            looked = [(curve, self._curve(curve)) for curve in grid]
            for point in others:
                self._measure(point)
            self._collectives(ranks)
        copy = self._bench.copy_bytes_per_s()
        self._journal.close()
        points = self._journal.points()
        fitted = fit(points, copy, found.sms)
        after, size = machines.gpu_state(), "quick" if self._quick else "full"
        notes = {
            "source": f"tools/profile_gpu.py, {self._model}, {size}, {self._attention.name}",
            "licence": "measured by the user",
            "date": date.today().isoformat(),
            "clocks_before": ", ".join(f"{name} {value}" for name, value in before.items()) or "not read",
            "clocks_after": ", ".join(f"{name} {value}" for name, value in after.items()) or "not read",
        }
        write_profile(out, points, fitted, found, notes)
        print(verdict(out, points, fitted, looked, self._drifts, self._attention))
        return 0

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description:18}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty())

    def _measure(self, point: Point) -> Measured:
        """From the journal, or now."""
        known = self._journal.get(point)
        if known is None:
            known = self._bench.measure(point)
            self._journal.add(point, known)
            self._watch(point, known.latency_us)
        self._bar.update(self._task, advance=1, description=point.family)
        return known

    def _watch(self, point: Point, latency_us: float) -> None:
        """Now and then measure one point again: drift is the machine's, not the kernel's."""
        now = time.perf_counter()
        if self._sentinel is None:
            self._sentinel = (point, latency_us, now)
        elif now - self._sentinel[2] > SENTINEL_SECONDS:
            first, first_us, _ = self._sentinel
            self._drifts.append(self._bench.measure(first).latency_us / first_us - 1)
            self._sentinel = (first, first_us, now)

    def _curve(self, curve: Curve) -> list[HeldOut]:
        """The coarse points of a curve, then those that interpolation misses. Returns all that were predicted first."""
        measured = {int(point[curve.axis]): self._measure(point).latency_us for point in curve.points}

        def at(position: int) -> float:
            self._bar.update(self._task, total=(self._bar.tasks[0].total or 0) + 1)
            return self._measure(curve.points[0].at(**{curve.axis: position})).latency_us

        return refine(measured, at, depth=DEPTH_QUICK if self._quick else DEPTH_FULL)

    def _collectives(self, points: Sequence[Point]) -> None:
        missing = [point for point in points if self._journal.get(point) is None]
        if not missing:
            return
        for point, measured in measured_collectives(missing, self._device, self._effort):
            self._journal.add(point, measured)
            self._bar.update(self._task, advance=1, description=point.family)


def dry_run(needs: Needs, domain: Domain, effort: Effort, device: str, *, quick: bool) -> str:
    """How many points, how long, how much memory, from assumed rates of the device."""
    grid = list(curves(needs, domain, quick=quick))
    lines = [f"{'family':20} {'points':>8} {'at most':>8} {'minutes':>8}"]
    depth = DEPTH_QUICK if quick else DEPTH_FULL
    total_points = total_s = 0.0
    largest = 0.0
    for family in ("gemm", "context_attention", "decode_attention"):
        chosen = [curve for curve in grid if curve.points[0].family == family]
        points = [point for curve in chosen for point in curve.points]
        most = len(points) + sum(max(0, len(curve.points) - 1) * (2**depth - 1) for curve in chosen)
        seconds = sum(_seconds(point, effort, device) for point in points) * (1 + most / len(points)) / 2
        lines.append(f"{family:20} {len(points):8,} {most:8,} {seconds / 60:8.1f}")
        total_points, total_s = total_points + most, total_s + seconds
        if family != "gemm":
            largest = max(largest, *(kv_bytes(point) for point in points))
        else:
            largest = max(largest, *(2.0 * (p["n"] * p["k"] + p["m"] * (p["n"] + p["k"])) for p in points))
    others = evidence(needs, domain, quick=quick, has_lengths=device == "cuda") + collectives(needs, domain)
    lines.append(f"{'others':20} {len(others):8,} {len(others):8,} {len(others) * effort.seconds / 60:8.1f}")
    total_s += len(others) * effort.seconds
    lines.append(f"about {total_s / 60:.0f} minutes ({device}), at most {total_points + len(others):,.0f} points,")
    lines.append(f"the largest point holds {largest / 2**30:.1f} GiB (limit {domain.memory_bytes / 2**30:.1f})")
    return "\n".join(lines)


def _seconds(point: Point, effort: Effort, device: str) -> float:
    """Preparing and repeating one point: a guess."""
    bytes_per_s, flops = RATES[device]
    if point.family == "gemm":
        work_s = max(2 * point["n"] * point["k"] / bytes_per_s, 2.0 * point["m"] * point["n"] * point["k"] / flops)
        data = 2.0 * point["n"] * point["k"]
    else:
        data = kv_bytes(point)
        work_s = data / bytes_per_s
    repeats_s = max(work_s, effort.sample_us * 1e-6) * (effort.least + 3)
    return float(repeats_s + min(effort.seconds, 0.02) + 4 * data / bytes_per_s)


def verdict(
    out: Path,
    points: Points,
    fitted: Fitted,
    looked: Sequence[tuple[Curve, Sequence[HeldOut]]],
    drifts: Sequence[float],
    attention: Attention,
) -> str:
    """Domain, noise, interpolation errors, drift: whether to trust the profile."""
    titles = ("family", "points", "noise", "outliers", "missed at first", "left out, median", "largest")
    lines = [f"profile written: {out}  (attention: {attention.name})", "", _columns(*titles)]
    for family in ("gemm", "context_attention", "decode_attention", "all_reduce"):
        chosen = [(p, m) for p, m in points if p.family == family]
        if not chosen:
            continue
        first = [held.error for curve, found in looked if curve.points[0].family == family for held in found]
        final = [held.error for row in _rows(chosen) for held in leave_one_out(row)]
        shares = (
            float(np.median([m.interval for _, m in chosen])),
            float(np.mean([m.outliers for _, m in chosen])),
            max(first, default=0.0),
            float(np.median(final)) if final else 0.0,
            max(final, default=0.0),
        )
        lines.append(_columns(family, f"{len(chosen):,}", *(f"{share:.1%}" for share in shares)))
    median, largest = fitted.elementwise_errors
    lines += ["", f"element-wise rule: median error {median:.0%}, largest {largest:.0%}"]
    if fitted.stream_errors is not None:
        median, largest = fitted.stream_errors
        lines.append(f"unequal contexts: median error {median:.0%}, largest {largest:.0%}")
    else:
        lines.append("unequal contexts: not measured (equal lengths only in this attention, or batches are too small)")
    worst = max((abs(drift) for drift in drifts), default=0.0)
    told = f"largest drift of a point measured again {worst:.1%}" if drifts else "the run was too short to see drift"
    lines.append(f"steadiness: {told}")
    if worst > DRIFT:
        lines.append("  the device changed its pace meanwhile: see clocks_before and clocks_after in meta.toml")
    lines.append("left out: inner points predicted from their neighbours; between points of the grid the error is less")
    return "\n".join(lines)


def _columns(first: str, *others: str) -> str:
    return f"{first:18}" + "".join(f"{text:>17}" for text in others)


def _rows(points: Points) -> list[dict[int, float]]:
    """Curves along the last axis."""
    rows: dict[Any, dict[int, float]] = {}
    for point, measured in points:
        rows.setdefault(point.axes[:-1], {})[int(point.axes[-1][1])] = measured.latency_us
    return list(rows.values())
