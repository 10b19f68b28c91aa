"""Figures of a run as PNG files. seaborn and matplotlib are imported only when something is drawn."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.gaps import Gaps
from ttsim_des.metrics.latencies import tpot_ns
from ttsim_des.metrics.stats import FloatArray, Summary
from ttsim_des.records.tables import Tables
from ttsim_des.report.curves import cdf, gap_cdf, over_time
from ttsim_des.report.units import number, time_unit
from ttsim_des.units import NS_PER_S

DPI: Final = 150
SHORT_RANGE, LONG_RANGE = 6, 400
"""A logarithmic axis over less than the first factor is marked in even steps, over more than the second in tens."""


class Curve(NamedTuple):
    """Values in seconds and the share of observations at or below; `quantiles` are the summary's."""

    label: str
    values: FloatArray
    shares: FloatArray
    quantiles: Summary


@dataclass(frozen=True, slots=True)
class Drawn:
    """The files that were drawn, and in words what could not be."""

    paths: list[Path]
    missing: list[str]


def draw(folder: Path, *, summary: dict[str, Any], tables: Tables, has_steps: bool) -> Drawn:
    """Draw every figure that the tables allow into `folder` (made if need be); files of the same name are replaced.

    Without the tables of steps and token gaps (a saved run without `output.steps`) the load over time and the
    inter-token latency are left out and named in `missing`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    paths: list[Path] = []
    set_up()
    latency = _latency_panels(summary, tables, has_steps)
    if latency:
        paths.append(save(folder / "latency_cdf.png", lambda: _draw_latency(summary, latency)))
    else:
        missing.append("latency_cdf.png: no query has a token yet")
    if has_steps and tables.steps.num_rows:
        paths.append(save(folder / "load_over_time.png", lambda: _draw_load(summary, tables)))
    else:
        missing.append(
            "load_over_time.png and inter-token latency: this run was saved without its steps; "
            "run it again with --set output.steps=true"
        )
    return Drawn(paths, missing)


def set_up() -> None:
    """The look of all figures; call it before drawing."""
    import matplotlib as mpl

    mpl.use("Agg")
    import seaborn as sns

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"axes.titleweight": "bold"})


def log_scale(panel: Any, *, y: bool = False) -> None:
    """A logarithmic x axis with plain numbers at its ticks (1, 2 and 5 times powers of ten, or fewer or more of them).

    With `y` the other axis too. Call it when everything is drawn; it leaves room for a label behind the last point.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    panel.set_xscale("log")
    panel.margins(x=0.1)
    if y:
        panel.set_yscale("log")
        panel.margins(y=0.1)
    for axis in (panel.xaxis, panel.yaxis) if y else (panel.xaxis,):
        low, high = axis.get_view_interval()
        if high < SHORT_RANGE * low:
            axis.set_major_locator(MaxNLocator(5))
        else:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < LONG_RANGE * low else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_locator(NullLocator())


def save(path: Path, make: Callable[[], Any]) -> Path:
    """Draw, write aside and rename; no date or version goes into the file."""
    import matplotlib.pyplot as plt

    figure = make()
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".png", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        figure.savefig(aside, dpi=DPI, metadata={"Software": None})
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        plt.close(figure)
        aside.unlink(missing_ok=True)
    return path


def _subtitle(summary: dict[str, Any]) -> str:
    run = summary["run"]
    text = f"{run['name']}: {run['model']} on {run['gpus']} x {run['gpu']}"
    return text + (f" (TP {run['tp']})" if run["tp"] > 1 else "")


# ---- latency ----

Panel = tuple[str, list[Curve]]
"""Title and curves."""


def _latency_panels(summary: dict[str, Any], tables: Tables, has_steps: bool) -> list[Panel]:
    """The same observations as the summary's: queries that arrived in the window, gaps delivered in it."""
    start_ns, end_ns = (round(summary["window"][key] * NS_PER_S) for key in ("start_s", "end_s"))
    warm = summary["window"]["warmup_queries"] > 0
    queries, requests = tables.queries, tables.requests
    population = column(queries, "arrival_ns") > start_ns if warm else np.ones(queries.num_rows, dtype=np.bool_)
    finished = is_in(queries, "status", "finished") & population
    first = column(queries, "first_token_ns")
    member = np.isin(column(requests, "query_id"), column(queries, "query_id")[population])
    token = column(requests, "first_token_ns")
    tpot = tpot_ns(tables)
    query, request = summary["query"], summary["request"]

    def since_arrival(table: Any, stamp: str, mask: Any) -> Any:
        return (column(table, stamp) - column(table, "arrival_ns"))[mask]

    panels: list[Panel] = [
        (
            "Query latency",
            [_curve("of a query", since_arrival(queries, "finish_ns", finished), query["latency_s"])],
        ),
        (
            "Time to first token",
            [
                _curve(
                    "of a query", since_arrival(queries, "first_token_ns", population & (first >= 0)), query["ttft_s"]
                ),
                _curve(
                    "of each request",
                    since_arrival(requests, "first_token_ns", member & (token >= 0)),
                    request["ttft_s"],
                ),
            ],
        ),
        (
            "Time per output token",
            [_curve("mean of a request (TPOT)", tpot[member & ~np.isnan(tpot)], request["tpot_s"])],
        ),
    ]
    if has_steps:
        gaps, shares = gap_cdf(Gaps(tables.token_gaps, start_ns if warm else None, end_ns))
        panels[2][1].append(Curve("each gap (ITL)", gaps / NS_PER_S, shares, request["itl_s"]))
    filled = [(title, [curve for curve in curves if curve.values.size]) for title, curves in panels]
    return [panel for panel in filled if panel[1]]


def _curve(label: str, values_ns: Any, quantiles: Summary) -> Curve:
    values, shares = cdf(values_ns)
    return Curve(label, values / NS_PER_S, shares, quantiles)


def _draw_latency(summary: dict[str, Any], panels: list[Panel]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.8), sharey=True, squeeze=False)
    figure.suptitle(f"Latency distributions, {_subtitle(summary)}", x=0.01, ha="left", fontsize=13)
    for axis, (title, curves) in zip(axes[0], panels, strict=True):
        _draw_cdf(axis, title, curves)
    axes[0][0].set_ylabel("share of observations at or below")
    figure.tight_layout(rect=(0, 0, 1, 1.0))
    return figure


def _draw_cdf(axis: Any, title: str, curves: list[Curve]) -> None:
    from matplotlib.ticker import PercentFormatter

    everything = np.concatenate([curve.values for curve in curves])
    unit, factor = time_unit(everything.tolist())
    for (label, values, shares, quantiles), style in zip(curves, ("-", "--"), strict=False):
        x, y = np.append(values, values[-1]) * factor, np.append(shares, 1.0)
        (line,) = axis.step(np.insert(x, 0, x[0]), np.insert(y, 0, 0.0), where="post", linewidth=2, linestyle=style)
        line.set_label(f"{label}{_reading(quantiles, unit, factor)}")
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        axis.axhline(share, color="0.45", linewidth=0.9, linestyle=":", zorder=1)
        axis.text(0.01, share - 0.01, name, transform=axis.get_yaxis_transform(), va="top", fontsize=9, color="0.35")
    positive = everything[everything > 0]
    if positive.size and positive.max() / np.median(positive) > 20:
        log_scale(axis)
    else:
        axis.set_xlim(left=0)
    axis.set_title(title, loc="left", fontsize=12)
    axis.set_xlabel(f"{title.lower()} ({unit})")
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.legend(loc="best", fontsize=9, frameon=True)


def _reading(quantiles: Summary, unit: str, factor: float) -> str:
    """p50 and p99 in words, as far as the summary gives them."""
    known = {key: value for key in ("p50", "p99") if (value := quantiles[key]) is not None}
    text = ", ".join(f"{key} {number(value * factor)} {unit}" for key, value in known.items())
    return f"\n{text}" if text else ""


# ---- load over time ----


def _draw_load(summary: dict[str, Any], tables: Tables) -> Any:
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import PercentFormatter

    curves = over_time(tables, summary["kv"]["block_size"])
    blocks = summary["kv"]["usable_blocks_per_replica"] * summary["run"]["replicas"]
    running, waiting, held = sns.color_palette("colorblind", 3)
    figure, axes = plt.subplots(3, 1, figsize=(10, 7.5), sharex=True)
    figure.suptitle(f"Load over time, {_subtitle(summary)}", x=0.01, ha="left", fontsize=13)
    window, steady = summary["window"], summary["run"]["kind"] == "steady"
    panels = (
        (axes[0], curves.running, running, "Requests running", "requests", summary["load"]["mean_running"]),
        (axes[1], curves.waiting, waiting, "Requests waiting", "requests", summary["load"]["mean_waiting"]),
        (axes[2], curves.held_blocks / blocks, held, "KV blocks held", "share", summary["kv"]["mean_held_share"]),
    )
    for axis, values, colour, title, unit, mean in panels:
        axis.stairs(values, curves.edges_s, fill=True, color=colour, alpha=0.35)
        axis.stairs(values, curves.edges_s, color=colour, linewidth=1.4)
        share = unit == "share"
        axis.set_title(title, loc="left", fontsize=12)
        if mean is not None:
            text = f"{mean:.1%}" if share else number(mean)
            axis.hlines(mean, window["start_s"], window["end_s"], color="0.25", linestyle="--", linewidth=1.2)
            axis.set_title(f"{title}, mean {text}", loc="left", fontsize=12)
        axis.set_ylabel("share of all blocks" if share else unit)
        axis.set_ylim(bottom=0, top=None if values.max() > 0 else 1)
        if share:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        if steady:
            for edge in (window["start_s"], window["end_s"]):
                axis.axvline(edge, color="0.25", linewidth=1)
    note = "; dashed: mean over the measured window, between the vertical lines" if steady else ""
    axes[2].set_xlabel(f"time since the start of the run (s){note}")
    axes[2].set_xlim(0, float(curves.edges_s[-1]))
    figure.tight_layout(rect=(0, 0, 1, 1.0))
    return figure
