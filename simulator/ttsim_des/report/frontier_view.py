"""The frontier as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttsim_des.report.figures import log_scale, save, set_up
from ttsim_des.report.units import duration, number, percent, usd

Rows = Sequence[Mapping[str, Any]]


def text(rows: Rows) -> str:
    """One line a variant; `*` marks those on the frontier of accuracy and waiting, `$` on that of accuracy and cost."""
    width = max(len(" ".join(row["variant"])) for row in rows)
    lines = [
        f"   {'':{width}} {'accuracy':>9} {'p95':>9} {'mean':>9} {'cost':>10} {'per solved':>10} {'tokens':>9}",
    ]
    for row in rows:
        known = row["accuracy"] is not None and row["stable"]
        waits = "*" if known and row["latency_p95_s"] is not None and not row["waits_longer"] else " "
        costs = "$" if known and not row["costs_more"] else " "
        cells = (
            f"{percent(row['accuracy']):>9} {duration(row['latency_p95_s']):>9} {duration(row['latency_mean_s']):>9} "
            f"{usd(row['query_usd']):>10} {usd(row['solved_query_usd']):>10} {number(row['output_tokens']):>9}"
        )
        unstable = "" if row["stable"] else "  queue grows"
        lines.append(f"{waits}{costs} {' '.join(row['variant']):{width}} {cells}{unstable}")
    return (
        "\n".join([*lines, "", "* no other is as accurate and faster   $ no other is as accurate and cheaper"]) + "\n"
    )


def draw(path: Path, rows: Rows, title: str) -> Path:
    """Accuracy against p95 latency and against cost, dominated variants hollow."""
    set_up()
    return save(path, lambda: _figure(rows, title))


def _figure(rows: Rows, title: str) -> Any:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(14, 5.5), layout="constrained", sharey=True)
    axes = (
        ("latency_p95_s", "waits_longer", "query latency, p95, seconds"),
        ("query_usd", "costs_more", "cost per query, USD"),
    )
    for panel, (name, dominated, label) in zip(panels, axes, strict=True):
        shown = [row for row in rows if row["accuracy"] is not None and row[name] is not None and row["stable"]]
        front = sorted((row[name], 100 * row["accuracy"]) for row in shown if not row[dominated])
        if front:
            panel.plot(*zip(*front, strict=True), drawstyle="steps-post", linewidth=1.5, color="C0")
        for row in shown:
            face = "none" if row[dominated] else "C0"
            panel.scatter(row[name], 100 * row["accuracy"], facecolors=face, edgecolors="C0", s=50, zorder=3)
            short = ", ".join(each.rpartition(".")[2] for each in row["variant"])
            panel.annotate(
                short, (row[name], 100 * row["accuracy"]), xytext=(5, -9), textcoords="offset points", size=7
            )
        panel.set(xlabel=label)
        log_scale(panel)
    panels[0].set_ylabel("answers right, %")
    figure.suptitle(title)
    return figure
