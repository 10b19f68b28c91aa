"""Goodput: queries that keep every limit of the scenario's SLO."""

from __future__ import annotations

from typing import Any

import numpy as np

from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.latencies import tpot_ns
from ttsim_des.metrics.stats import FloatArray
from ttsim_des.metrics.window import Window, query_rows
from ttsim_des.records.tables import Tables
from ttsim_des.units import s_to_ns


def largest_tpot_ns(tables: Tables) -> FloatArray:
    """Largest time per output token among each query's requests; 0 where none has one."""
    largest, tpot = np.zeros(tables.queries.num_rows), tpot_ns(tables)
    np.fmax.at(largest, query_rows(tables.queries, tables.requests), tpot)  # NaN, the unknown, loses
    return largest


def goodput_section(tables: Tables, window: Window, context: RunContext, tpot: FloatArray) -> dict[str, Any]:
    """Share of the window's queries that meet each limit and all of them; None where the scenario sets none.

    A query without an answer meets nothing.
    """
    queries = tables.queries
    arrival, first = column(queries, "arrival_ns"), column(queries, "first_token_ns")
    finished = is_in(queries, "status", "finished")
    # A query without tokens (scores only) has its answer for a first token.
    ttft = np.where(first >= 0, first, column(queries, "finish_ns")) - arrival
    measured = {
        "query_latency_s": (context.slo_query_latency_s, column(queries, "finish_ns") - arrival),
        "ttft_s": (context.slo_ttft_s, ttft),
        "tpot_s": (context.slo_tpot_s, tpot),
    }
    population = int(window.queries.sum())
    good = finished & window.queries
    limits: dict[str, Any] = {}
    for name, (limit_s, value_ns) in measured.items():
        if limit_s is None:
            continue
        met = finished & window.queries & (value_ns <= s_to_ns(limit_s))
        good &= met
        limits[name] = {"limit_s": limit_s, "share": int(met.sum()) / population if population else None}
    if not limits or not population:
        return {"limits": limits, "share": None, "queries_per_s": None}
    return {
        "limits": limits,
        "share": int(good.sum()) / population,
        "queries_per_s": window.per_s(int(good.sum())),
    }
