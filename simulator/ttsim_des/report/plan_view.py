"""What `ttsim-des plan` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ttsim_des.report.replicated import HEADLINES
from ttsim_des.report.units import number, percent
from ttsim_des.report.variants import shortened

MARKS = {"holds": "✓", "fails": "✗", "unclear": "?", "withheld": "-", None: " "}
COLUMNS = ("query latency, p95", "query latency, mean", "accuracy", "GPU busy", "cost per query")
MOST_ROWS = 40


def choice(
    rows: Sequence[Mapping[str, Any]], best: Sequence[str] | None, slos: Sequence[str], simulated: int, objective: str
) -> str:
    """The candidates that were simulated, the reasons of the others, and the choice."""
    shown = sorted(
        (row for row in rows if row["state"] is not None and (not row["runs_like"] or list(row["variant"]) == best)),
        key=lambda row: (row["state"] != "holds", row["objective"] is None, row["objective"] or 0.0),
    )
    columns = [label for label in COLUMNS if any(row["means"].get(HEADLINES[label][0]) is not None for row in shown)]
    names = shortened(row["variant"] for row in rows)
    width = max([len(names[tuple(row["variant"])]) for row in shown], default=0)
    heads = [label.replace("query latency, ", "latency ") for label in columns]
    lines = [f"  SLO: {'; '.join(slos)}", "", f"     {'':{width}}  GPUs  " + "  ".join(f"{head:>14}" for head in heads)]
    for row in shown[:MOST_ROWS]:
        mark = "→" if list(row["variant"]) == best else " "
        cells = "  ".join(f"{HEADLINES[label][1](row['means'].get(HEADLINES[label][0])):>14}" for label in columns)
        why = f"  {row['why_not']}" if row["why_not"] else ""
        alike = sum(other["runs_like"] == " ".join(row["variant"]) for other in rows)
        why += f"  and {alike} like it" if alike else ""
        lines.append(
            f"  {mark}{MARKS[row['state']]} {names[tuple(row['variant'])]:{width}}  {row['gpus']:>4}  {cells}{why}"
        )
    if len(shown) > MOST_ROWS:
        lines.append(f"     and {len(shown) - MOST_ROWS} more")
    if any(row["state"] == "withheld" for row in shown):
        lines.append(
            "   - a metric is withheld: fewer than 10 / (1 - q) queries behind a quantile; ask for more queries"
        )
    reasons = Counter(kind_of(row["why_not"]) for row in rows if row["state"] is None)
    alike = sum(bool(row["runs_like"]) for row in rows)
    lines += ["", f"  {len(rows)} candidates, {simulated} simulated"]
    if alike:
        lines.append(f"    {alike} not: run like another one, since the limits in which they differ are never met")
    lines += [f"    {count} not: {reason}" for reason, count in reasons.most_common()]
    if best is None:
        lines += ["", "  none keeps all SLOs for sure"]
    else:
        lines += ["", f"  smallest {objective} that keeps them: {' '.join(best) or 'the scenario as it is'}"]
    return "\n".join(lines) + "\n"


def kind_of(reason: str) -> str:
    """The reason without its numbers and names, for counting."""
    if reason.startswith("offered "):
        return "offered more than the best possible throughput"
    if reason.startswith("cannot be cheaper"):
        return "cannot be cheaper than the choice so far"
    if reason.startswith("cannot be better"):
        return "cannot be better than another in anything"
    return reason


def load(
    kept: float | None,
    broken: float | None,
    best_possible: float,
    probes: Sequence[Mapping[str, Any]],
    means: Mapping[str, float | None],
    slos: Sequence[str],
) -> str:
    """The largest load, what it is like there, and the loads that were tried."""
    lines = [f"  SLO: {'; '.join(slos)}", ""]
    if kept is None:
        lines.append(f"  no load keeps them: not even {number(broken)} queries/s")
    else:
        share = percent(kept / best_possible)
        lines.append(f"  largest load: {number(kept)} queries/s, {share} of the best possible throughput")
        if broken is not None:
            lines.append(f"  {number(broken)} queries/s is too much")
        lines.append("")
        for label, (path, show) in HEADLINES.items():
            if means.get(path) is not None:
                lines.append(f"    {label:38} {show(means[path]):>12}")
    lines += ["", "  tried"]
    for probe in sorted(probes, key=lambda row: row["rate_per_s"]):
        mark = "✓" if probe["is_kept"] else "✗"
        states = ", ".join(sorted(set(probe["states"].values())))
        lines.append(
            f"  {mark} {number(probe['rate_per_s'], 4):>10} queries/s  {probe['replications']:>3} runs  {states}"
        )
    return "\n".join(lines) + "\n"
