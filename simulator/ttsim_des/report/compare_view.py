"""What `ttsim-des compare` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttsim_des.report.replicated import HEADLINES

MARKS = {"better": "✓", "worse": "✗", "same": "=", "unclear": "?", "differs": "~"}


def text(
    names: tuple[str, str],
    changes: Mapping[str, tuple[Any, Any]],
    differences: Mapping[str, Mapping[str, Any]],
    counts: tuple[int, int],
    band_pct: float,
) -> str:
    """How the scenarios differ, then the headlines of both runs with a verdict."""
    first, second = names
    paired = any(row["is_paired"] for row in differences.values())
    how = f"paired by replication ({counts[0]})" if paired else f"{counts[0]} and {counts[1]} replications, not paired"
    lines = [f"{second} against {first}, {how}", ""]
    if changes:
        lines.append("  the scenarios differ in")
        lines += [f"    {key}: {_shown(before)} -> {_shown(after)}" for key, (before, after) in changes.items()]
    else:
        lines.append("  the scenarios are the same")
    lines += ["", f"  {'':38} {first[-12:]:>12} {second[-12:]:>12} {'change':>9}"]
    for label, (path, show) in HEADLINES.items():
        if (row := differences.get(path)) is None:
            continue
        half = "" if row["half_width_pct"] is None else f" ± {row['half_width_pct']:.2g}"
        change = "-" if row["change_pct"] is None else f"{row['change_pct']:+.2f} %"
        verdict = f"{MARKS[row['verdict']]} {row['verdict']}"
        lines.append(f"  {label:38} {show(row['first']):>12} {show(row['second']):>12} {change:>9}{half:10} {verdict}")
    lines += ["", f"  within {band_pct:g} % a change does not matter; intervals of 95 %"]
    if min(counts) == 1:
        lines.append("  one replication has no interval: run both with --replications and one seed")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
