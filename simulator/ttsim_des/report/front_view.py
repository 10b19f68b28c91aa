"""The Pareto front as a table and as a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttsim_des.report.figures import log_scale, save, set_up
from ttsim_des.report.plan_view import kind_of
from ttsim_des.report.units import duration, number, percent, usd
from ttsim_des.report.variants import shortened

Rows = Sequence[Mapping[str, Any]]
MOST_ROWS = 40


def text(rows: Rows, left_out: Rows, slos: Sequence[str], candidates: int) -> str:
    """The points on the front from the cheapest on, and why others are not there."""
    front = sorted((row for row in rows if row["on_front"]), key=lambda row: (_cost(row), row["latency_p95_s"]))
    has_accuracy = any(row["accuracy"] is not None for row in front)
    names = shortened(row["variant"] for row in (*rows, *left_out))
    width = max([len(names[tuple(row["variant"])]) for row in front], default=0)
    lines = [f"  SLO: {'; '.join(slos)}", ""] if slos else []
    head = f"  {'':{width}} {'cost':>10} {'GPU-s':>8} {'p95':>9} {'mean':>9}"
    lines.append(head + (f" {'accuracy':>9}" if has_accuracy else ""))
    for row in front[:MOST_ROWS]:
        cells = (
            f"{usd(row['query_usd']):>10} {number(row['gpu_s_per_query']):>8} "
            f"{duration(row['latency_p95_s']):>9} {duration(row['latency_mean_s']):>9}"
        )
        accuracy = f" {percent(row['accuracy']):>9}" if has_accuracy else ""
        lines.append(f"  {names[tuple(row['variant'])]:{width}} {cells}{accuracy}")
    if len(front) > MOST_ROWS:
        lines.append(f"  and {len(front) - MOST_ROWS} more")
    if not front:
        lines.append("  nothing is on the front")
    reasons = Counter(kind_of(row["why_not"]) for row in left_out)
    lines += [
        "",
        f"  {candidates} candidates, {len(front)} on the front: no other is as cheap, as fast and as accurate",
    ]
    lines += [f"    {count} left out: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: Rows, title: str) -> Path:
    """Cost against p95 latency, accuracy by colour where it is known; what is not on the front is hollow."""
    set_up()
    return save(path, lambda: _figure(rows, title))


def _cost(row: Mapping[str, Any]) -> float:
    cost = row["query_usd"] if row["query_usd"] is not None else row["gpu_s_per_query"]
    return float(cost)


def _figure(rows: Rows, title: str) -> Any:
    import matplotlib.pyplot as plt
    from matplotlib.colors import Normalize

    figure, panel = plt.subplots(figsize=(9, 6), layout="constrained")
    shown = [row for row in rows if row["latency_p95_s"] is not None and row["stable"]]
    names = shortened(row["variant"] for row in rows)
    in_usd = all(row["query_usd"] is not None for row in shown)
    accuracies = [row["accuracy"] for row in shown]
    has_accuracy = bool(shown) and None not in accuracies
    colours = plt.get_cmap("viridis")
    limits = Normalize(100 * min(accuracies), 100 * max(accuracies)) if has_accuracy else None
    for row in sorted(shown, key=lambda row: row["on_front"]):
        colour = colours(limits(100 * row["accuracy"])) if limits is not None else "C0"
        face = colour if row["on_front"] else "none"
        panel.scatter(_cost(row), row["latency_p95_s"], facecolors=face, edgecolors=colour, s=60)
        if row["on_front"]:
            place = (_cost(row), row["latency_p95_s"])
            panel.annotate(names[tuple(row["variant"])], place, xytext=(6, 5), textcoords="offset points", size=7)
    if limits is not None:
        figure.colorbar(plt.cm.ScalarMappable(limits, colours), ax=panel, label="answers right, %")
    panel.set(ylabel="query latency, p95, seconds", title=title)
    log_scale(panel, y=True)
    panel.set_xlabel("cost per query, USD" if in_usd else "GPU-seconds per query")
    return figure
