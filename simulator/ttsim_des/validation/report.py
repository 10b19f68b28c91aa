"""What `validate` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DISTANCES = (".ks", ".wasserstein_s")


def table(name: str, metrics: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Any]) -> str:
    """Measured and simulated side by side, then what the replay assumed."""
    lines = [name, "", f"  {'':24} {'measured':>12} {'simulated':>12} {'error':>9}"]
    for metric, row in metrics.items():
        if metric.endswith(DISTANCES):
            continue
        if metric.endswith("_pct"):
            name = metric.removesuffix("_pct").replace("_", " ")
            lines.append(f"  {name:24} {'':12} {row['simulated']:>10.2f} %")
            continue
        error = "-" if row["error_pct"] is None else f"{row['error_pct']:+.2f} %"
        lines.append(f"  {metric:24} {_number(row['measured']):>12} {_number(row['simulated']):>12} {error:>9}")
    if any(metric.endswith(".ks") for metric in metrics):
        lines += ["", f"  {'distance':24} {'KS':>12} {'Wasserstein':>12}"]
    for metric, row in metrics.items():
        if metric.endswith(".ks"):
            moved = metrics[metric.removesuffix(".ks") + ".wasserstein_s"]["simulated"]
            lines.append(f"  {metric.removesuffix('.ks'):24} {row['simulated']:>12.3f} {_number(moved):>10} s")
    lines.append("")
    for key, value in parameters.items():
        text = str(value)
        if key == "terms":
            off = [term for term, is_on in value.items() if not is_on]
            text = f"off: {', '.join(off)}" if off else "all on"
        elif isinstance(value, Mapping):
            text = _flat(value)
        lines.append(f"  {key}: {text}")
    return "\n".join(lines) + "\n"


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def closed_table(
    rows: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, int],
    metrics: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Any],
) -> str:
    """Closed-loop rows, measured and simulated, and what they come to."""
    width = max(len(row["name"]) for row in rows)
    head = f"  {'':{width}} {'TTFT s':>9} {'simulated':>9} {'error':>9} {'TPOT ms':>9} {'simulated':>9} {'error':>9}"
    lines = [
        head,
        *(
            f"  {row['name']:{width}} {row['ttft_s']:>9.3f} {row['simulated_ttft_s']:>9.3f} "
            f"{row['ttft_error_pct']:>+7.1f} % {1e3 * row['tpot_s']:>9.2f} {1e3 * row['simulated_tpot_s']:>9.2f} "
            f"{row['tpot_error_pct']:>+7.1f} %"
            for row in rows
        ),
        "",
    ]
    for name in ("tpot", "ttft"):
        mape, bias = (metrics[f"{name}_{what}_pct"]["simulated"] for what in ("mape", "bias"))
        lines.append(f"  {name.upper()}: mean absolute error {mape:.2f} %, bias {bias:+.2f} %, {len(rows)} rows")
    lines += [f"  {key}: {value}" for key, value in parameters.items()]
    lines += [f"  not simulated, {count} rows: {reason}" for reason, count in skipped.items()]
    return "\n".join(lines) + "\n"
