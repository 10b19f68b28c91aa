"""The summary of one run: summary.json, schema 1. docs/metrics.md defines every number."""

from __future__ import annotations

from typing import Any, Final

from ttsim_des.metrics.accuracy import accuracy_section
from ttsim_des.metrics.cautions import cautions
from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.device import device_sections
from ttsim_des.metrics.goodput import goodput_section, largest_tpot_ns
from ttsim_des.metrics.latencies import query_section, request_section
from ttsim_des.metrics.speculation import speculation_section
from ttsim_des.metrics.stability import stability
from ttsim_des.metrics.stats import as_json, describe_ns, exact_sum, withheld
from ttsim_des.metrics.tokens import tokens_in_window
from ttsim_des.metrics.window import Window
from ttsim_des.records.tables import Tables
from ttsim_des.units import NS_PER_S

SUMMARY_SCHEMA: Final = 1

QUEUE_BOUND: Final = {
    "query": ("latency_s", "ttft_s", "straggler_share"),
    "request": ("ttft_s", "e2e_s", "queueing_s"),
}
"""Distributions that only say how long the run was when the queue grows."""


def summarise(tables: Tables, context: RunContext) -> dict[str, Any]:
    """All metrics of a run as plain numbers, ready for JSON; a number that cannot be given is None."""
    window = Window.of(tables, context)
    verdict = stability(tables, window, context)
    accuracy = accuracy_section(tables, window)
    summary: dict[str, Any] = {
        "schema": SUMMARY_SCHEMA,
        "run": _run_section(context),
        "window": _window_section(tables, window),
        "query": query_section(tables, window),
        "request": request_section(tables, window),
        **_rates(tables, window, context),
        **device_sections(tables, window, context),
        "prefix_cache": _prefix_section(tables, window),
        "preemption": _preemption_section(tables, window),
        "waste": _waste_section(tables, window),
        "speculation": speculation_section(tables, window),
        "accuracy": accuracy,
        "cost": _cost_section(tables, window, context, accuracy["share"]),
        "pools": {name: _pool_section(tables, window, pool, name) for name, pool in context.pools.items()},
        "goodput": goodput_section(tables, window, context, largest_tpot_ns(tables)),
        "stability": verdict,
    }
    if verdict["stable"] is False:
        for section, names in QUEUE_BOUND.items():
            summary[section].update({name: withheld(summary[section][name]) for name in names})
    summary["warnings"] = [*context.warnings, *cautions(tables, window, context, summary)]
    result: dict[str, Any] = as_json(summary)
    return result


def _run_section(context: RunContext) -> dict[str, Any]:
    names = ("name", "kind", "seed", "strategy", "model", "gpu", "engine", "tp", "replicas", "gpus")
    return {name: getattr(context, name) for name in names}


def _window_section(tables: Tables, window: Window) -> dict[str, Any]:
    return {
        "start_s": window.start_ns / NS_PER_S,
        "end_s": window.end_ns / NS_PER_S,
        "length_s": window.length_s,
        "run_end_s": tables.end_ns / NS_PER_S,
        "warmup_queries": window.warmup_queries,
        "queries": int(window.queries.sum()),
        "requests": int(window.requests.sum()),
    }


def _rates(tables: Tables, window: Window, context: RunContext) -> dict[str, Any]:
    queries, requests = tables.queries, tables.requests
    finished = is_in(queries, "status", "finished") & window.holds(column(queries, "finish_ns"))
    ended = is_in(requests, "status", "finished") & window.holds(column(requests, "finish_ns"))
    tokens = tokens_in_window(tables, window)
    return {
        "offered": {
            "configured_queries_per_s": context.offered_rate_per_s,
            "queries_per_s": window.per_s(int(window.holds(column(queries, "arrival_ns")).sum())),
            "requests_per_s": window.per_s(int(window.holds(column(requests, "arrival_ns")).sum())),
        },
        "achieved": {
            "queries_per_s": window.per_s(int(finished.sum())),
            "requests_per_s": window.per_s(int(ended.sum())),
            "output_tokens_per_s": window.per_s(tokens.output),
            "total_tokens_per_s": window.per_s(tokens.output + tokens.prompt),
        },
    }


def _prefix_section(tables: Tables, window: Window) -> dict[str, Any]:
    admitted = window.requests & (column(tables.requests, "scheduled_ns") >= 0)
    prompt = exact_sum(column(tables.requests, "prompt_tokens")[admitted])
    cached = exact_sum(column(tables.requests, "cached_tokens")[admitted])
    return {"prompt_tokens": prompt, "cached_tokens": cached, "hit_share": cached / prompt if prompt else None}


def _preemption_section(tables: Tables, window: Window) -> dict[str, Any]:
    count = exact_sum(column(tables.requests, "preemptions")[window.requests])
    computed = exact_sum(column(tables.requests, "computed_tokens")[window.requests])
    recomputed = exact_sum(column(tables.requests, "recomputed_tokens")[window.requests])
    requests = int(window.requests.sum())
    return {
        "count": count,
        "per_request": count / requests if requests else None,
        "recomputed_tokens": recomputed,
        "recomputed_share": recomputed / computed if computed else None,
    }


def _waste_section(tables: Tables, window: Window) -> dict[str, Any]:
    output = exact_sum(column(tables.queries, "output_tokens")[window.queries])
    wasted = exact_sum(column(tables.queries, "wasted_tokens")[window.queries])
    cancelled = int((is_in(tables.requests, "status", "cancelled") & window.requests).sum())
    return {
        "cancelled_requests": cancelled,
        "wasted_tokens": wasted,
        "wasted_share": wasted / output if output else None,
    }


def _pool_section(tables: Tables, window: Window, pool: RunContext, name: str) -> dict[str, Any]:
    """What a pool beside the generator's did."""
    requests = tables.requests
    mine = window.requests & is_in(requests, "pool", name)
    finished = mine & is_in(requests, "status", "finished")
    device = device_sections(tables, window, pool, name)
    del device["load"]
    prompt, cached = (exact_sum(column(requests, each)[mine]) for each in ("prompt_tokens", "cached_tokens"))
    return {
        "model": pool.model,
        "gpu_name": pool.gpu,
        "gpus": pool.gpus,
        "requests": int(mine.sum()),
        "e2e_s": describe_ns((column(requests, "finish_ns") - column(requests, "arrival_ns"))[finished]),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        **device,
    }


def _cost_section(tables: Tables, window: Window, context: RunContext, accuracy: float | None) -> dict[str, Any]:
    """GPUs of all pools are paid for the whole window, busy or not."""
    finished = is_in(tables.queries, "status", "finished") & window.holds(column(tables.queries, "finish_ns"))
    queries, output = int(finished.sum()), tokens_in_window(tables, window).output
    gpu_s = context.fleet_gpus * window.length_s
    per_query = gpu_s / queries if queries and gpu_s > 0 else None
    per_million = gpu_s / output * 1e6 if output and gpu_s > 0 else None
    # Of an average GPU: pools may have different ones.
    gpu_second_usd = None if context.fleet_hour_usd is None else context.fleet_hour_usd / context.fleet_gpus / 3600
    per_solved = per_query / accuracy if per_query is not None and accuracy else None

    def usd(gpu_seconds: float | None) -> float | None:
        return None if gpu_second_usd is None or gpu_seconds is None else gpu_seconds * gpu_second_usd

    return {
        "gpu_hour_usd": context.gpu_hour_usd,
        "price_source": context.price_source,
        "gpu_s_per_query": per_query,
        "gpu_s_per_million_output_tokens": per_million,
        "gpu_s_per_solved_query": per_solved,
        "query_usd": usd(per_query),
        "solved_query_usd": usd(per_solved),
        "million_output_tokens_usd": usd(per_million),
    }
