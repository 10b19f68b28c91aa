"""The summary as a text table of fixed width."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ttsim_des.report.units import duration, number, percent, time_unit, usd

WIDTH: Final = 100
COLUMNS: Final = ("mean", "p50", "p90", "p95", "p99", "p99_9")
LATENCIES: Final = (
    ("query", "latency_s", "query latency"),
    ("query", "ttft_s", "query first token"),
    ("request", "queueing_s", "request queueing"),
    ("request", "ttft_s", "request first token (TTFT)"),
    ("request", "tpot_s", "time per output token (TPOT)"),
    ("request", "itl_s", "inter-token latency (ITL)"),
    ("request", "e2e_s", "request end to end"),
)
SLO_TEXTS: Final = {
    "query_latency_s": "query latency",
    "ttft_s": "query first token",
    "tpot_s": "slowest sample's TPOT",
}


def render(summary: dict[str, Any], *, colour: bool = False) -> str:
    """The summary (schema 1) as text, 100 columns wide; `colour` only for a terminal."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=WIDTH,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in _parts(summary):
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _parts(summary: dict[str, Any]) -> Iterator[Any]:
    yield from _header(summary)
    if summary["goodput"]["limits"]:
        yield _slo(summary)
    yield _latencies(summary)
    yield _load(summary)
    yield from _warnings(summary)


def _header(summary: dict[str, Any]) -> Iterator[Text]:
    run, window, query = summary["run"], summary["window"], summary["query"]
    yield Text(f"{run['name']} (seed {run['seed']})", style="bold")
    replicas = f"{run['replicas']} replica{'s' if run['replicas'] != 1 else ''} x TP {run['tp']}"
    parts = [run["model"], f"{run['gpus']} x {run['gpu']} ({replicas})", run["engine"], run["strategy"]]
    yield Text("  " + ", ".join(part for part in parts if part))
    counts = f"{number(query['finished'])} of {number(window['queries'])} queries finished"
    counts += f" ({number(window['requests'])} requests)"
    if run["kind"] == "steady":
        head = (
            f"  steady state over {duration(window['length_s'])}, {number(window['warmup_queries'])} queries of warm-up"
        )
        yield Text(f"{head} cut; {counts}")
    else:
        yield Text(f"  terminating run of {duration(window['length_s'])}; {counts}")


def _grid(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _slo(summary: dict[str, Any]) -> Padding:
    goodput = summary["goodput"]
    table = _grid("Service level")
    table.show_header = False
    table.add_column()
    table.add_column()
    table.add_column(justify="right")
    for name, limit in goodput["limits"].items():
        mark = _mark(limit["share"])
        table.add_row(mark, f"{SLO_TEXTS[name]} within {duration(limit['limit_s'])}", percent(limit["share"]))
    rate = f"goodput {number(goodput['queries_per_s'])} queries/s, share that keeps all limits"
    table.add_row(_mark(goodput["share"]), rate, percent(goodput["share"]))
    return Padding(table, (1, 0, 0, 2))


def _mark(share: float | None) -> Text:
    """A tick only where every query keeps the limit."""
    return Text("✓", style="green") if share == 1.0 else Text("✗", style="red")


def _latencies(summary: dict[str, Any]) -> Padding:
    table = _grid("Latency")
    table.add_column("", min_width=28)
    table.add_column("unit")
    for name in COLUMNS:
        table.add_column("p99.9" if name == "p99_9" else name, justify="right", min_width=6)
    table.add_column("count", justify="right")
    for section, key, label in LATENCIES:
        row = summary[section][key]
        unit, factor = time_unit(row[name] for name in COLUMNS)
        cells = [number(None if row[name] is None else row[name] * factor) for name in COLUMNS]
        table.add_row(label, unit, *cells, number(row["count"]))
    share = summary["query"]["straggler_share"]
    if share["count"]:
        cells = [number(None if share[name] is None else share[name] * 100) for name in COLUMNS]
        table.add_row("wait for the straggler", "%", *cells, number(share["count"]))
    return Padding(table, (1, 0, 0, 2))


def _load(summary: dict[str, Any]) -> Padding:
    table = _grid("Load, work and cost")
    table.show_header = False
    for justify in ("left", "right", "left", "right"):
        table.add_column(justify=justify, min_width=0 if justify == "left" else 9)
    offered, achieved, gpu, load = (summary[name] for name in ("offered", "achieved", "gpu", "load"))
    cache, preempted, cost, waste = (summary[name] for name in ("prefix_cache", "preemption", "cost", "waste"))
    rows = (
        ("offered queries/s", number(offered["queries_per_s"]), "GPU busy", percent(gpu["busy_share"])),
        ("achieved queries/s", number(achieved["queries_per_s"]), "mean step", duration(summary["steps"]["mean_s"])),
        (
            "offered requests/s",
            number(offered["requests_per_s"]),
            "batch, mean over steps",
            number(summary["batch"]["step_mean_seqs"]),
        ),
        (
            "achieved requests/s",
            number(achieved["requests_per_s"]),
            "batch, mean over busy time",
            number(summary["batch"]["time_mean_seqs"]),
        ),
        ("output tokens/s", number(achieved["output_tokens_per_s"]), "running, mean", number(load["mean_running"])),
        ("total tokens/s", number(achieved["total_tokens_per_s"]), "waiting, mean", number(load["mean_waiting"])),
        ("cost per query", usd(cost["query_usd"]), "KV blocks held, mean", percent(summary["kv"]["mean_held_share"])),
        (
            "cost per 1M output tokens",
            usd(cost["million_output_tokens_usd"]),
            "KV blocks held, peak",
            percent(summary["kv"]["peak_held_share"]),
        ),
        ("GPU-seconds per query", number(cost["gpu_s_per_query"]), "prefix-cache hits", percent(cache["hit_share"])),
        (
            "wasted output tokens",
            percent(waste["wasted_share"]),
            "preemptions (tokens recomputed)",
            f"{number(preempted['count'])} ({percent(preempted['recomputed_share'])})",
        ),
    )
    for row in (*rows, *_drafts(summary), *_worth(summary)):
        table.add_row(*row)
    return Padding(table, (1, 0, 0, 2))


def _drafts(summary: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What became of drafts, where there were any."""
    drafts = summary["speculation"]
    if drafts["draft_tokens"]:
        yield (
            "tokens a step with drafts",
            number(drafts["acceptance_length"]),
            "drafts accepted",
            percent(drafts["acceptance_rate"]),
        )
        yield (
            "computed tokens rejected",
            percent(drafts["rejected_share"]),
            "accepted by position",
            " ".join(number(100 * rate) for rate in drafts["acceptance_by_position"][:5]) + " %",
        )


def _worth(summary: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What the answers are worth, where that is known, and what the other pools did."""
    accuracy, cost, query = summary["accuracy"], summary["cost"], summary["query"]
    if accuracy["pass_at_1"] is not None:
        n = number(accuracy["samples_per_query"])
        yield "answers right", percent(accuracy["share"]), "samples right (pass@1)", percent(accuracy["pass_at_1"])
        yield "cost per solved query", usd(cost["solved_query_usd"]), "majority right", percent(accuracy["majority"])
        yield (
            "tokens on the critical path, mean",
            number(query["critical_tokens"]["mean"]),
            f"any of {n} right (pass@n)",
            percent(accuracy["pass_at_n"]),
        )
    for name, pool in summary["pools"].items():
        hit = pool["cached_tokens"] / pool["prompt_tokens"] if pool["prompt_tokens"] else None
        yield f"{name}: GPU busy", percent(pool["gpu"]["busy_share"]), f"{name}: prefix-cache hits", percent(hit)


def _warnings(summary: dict[str, Any]) -> Iterator[Padding]:
    for index, text in enumerate(summary["warnings"]):
        line = Text("warning: ", style="yellow")
        line.append(text, style="none")
        yield Padding(line, (0 if index else 1, 0, 0, 2))
