"""What `ttsim-des profile` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def shown(profile: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> str:
    """A profile's meta data, its tables, and the bundled models that it can time."""
    link, peaks, unequal = profile["link_gb_per_s"], profile["peak_tflops"], profile["unequal_contexts"]
    lines = [
        f"{profile['name']}: {profile['device']}",
        f"  memory {profile['memory_gib']:.2f} GiB, {profile['bandwidth_gb_per_s']:,.0f} GB/s"
        + ("" if link is None else f"; link {link:,.0f} GB/s"),
        f"  peaks {', '.join(f'{dtype} {peak:,.0f} TFLOP/s' for dtype, peak in peaks.items())}",
        f"  element-wise kernels: bytes / ({profile['elementwise']['bandwidth_share']:.2f} x bandwidth)"
        f" + {profile['elementwise']['launch_us']:.1f} us",
        f"  one of {unequal['sms']} SMs reads keys and values at {unequal['stream_gb_per_s']:.1f} GB/s"
        f" ({'measured' if unequal['is_measured'] else 'assumed'})",
        f"  {profile['source']}",
        f"  {profile['licence']}; {profile['date']}",
        "",
        "  table                       rows  from - to",
    ]
    for table in profile["tables"]:
        ranges = ", ".join(f"{name} {low}-{high}" for name, (low, high) in table["ranges"].items())
        lines.append(f"  {table['family'] + ' ' + table['label']:24} {table['rows']:>7,}  {ranges}")
    return "\n".join([*lines, "", *_models(models)])


def _models(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Bundled models by the degrees of tensor parallelism at which they can be timed."""
    by_degrees: dict[str, list[str]] = {}
    for name, found in models.items():
        key = f"TP {', '.join(map(str, found['tp']))}" if found["tp"] else f"not: {found['why']}"
        by_degrees.setdefault(key, []).append(name)
    lines = ["  bundled models that can be timed"]
    for key, names in sorted(by_degrees.items(), key=lambda item: item[0].startswith("not")):
        lines.append(f"  {key}")
        lines += [f"    {line}" for line in _wrapped(names)]
    return lines


def _wrapped(names: Iterable[str], width: int = 110) -> list[str]:
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + len(name) + 2 > width:
            lines.append("")
        lines[-1] += f", {name}" if lines[-1] else name
    return lines


def examined(tables: Sequence[Mapping[str, Any]], impossible: Sequence[str]) -> str:
    """Noise and gaps by table, then what cannot be."""
    lines = [
        "                                        single points left out: error",
        "  table                       rows    median      p90  largest    falls",
    ]
    for row in tables:
        names = ("left_out_median_pct", "left_out_p90_pct", "left_out_max_pct", "falls_pct")
        cells = "  ".join(_percent(row[name]) for name in names)
        lines.append(f"  {row['family'] + ' ' + row['label']:24} {row['rows']:>7,}  {cells}")
    lines += ["", "  A fall: a point more than 5 % below the one before it, though its work is larger.", ""]
    lines += [f"  ✗ {text}" for text in impossible] or ["  ✓ nothing is faster than the data sheet allows"]
    return "\n".join(lines)


def compared(names: tuple[str, str], tables: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> str:
    """Differences by table, then of a model's steps."""
    first, second = names
    lines = [
        f"{second} against {first}",
        "",
        "  points of the first on curves of the second",
        "  table                      points  compared     mean   median      p90  largest",
    ]
    for row in tables:
        name, points = f"{row['family']} {row['label']}", row["points"]
        if not row.get("compared"):
            why = "not in the second" if "compared" not in row else f"{points:,} points, no curve in both"
            lines.append(f"  {name:24}  {why}")
            continue
        cells = "  ".join(
            (
                _signed(row["mean_pct"]),
                *(_percent(row[key]) for key in ("median_abs_pct", "p90_abs_pct", "max_abs_pct")),
            )
        )
        lines.append(f"  {name:24} {points:>8,}  {row['compared']:>8,}  {cells}")
    if steps:
        lines += ["", f"  {'step':32} {'first':>10} {'second':>10} {'':>8}"]
    for row in steps:
        beyond = "" if row["in_domain"] else "  (beyond what was measured)"
        lines.append(
            f"  {row['step']:32} {row['first_ms']:>7.3f} ms {row['second_ms']:>7.3f} ms"
            f" {_signed(row['difference_pct'])}{beyond}"
        )
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{value:>5.1f} %"


def _signed(value: float) -> str:
    return f"{value:>+5.1f} %"
