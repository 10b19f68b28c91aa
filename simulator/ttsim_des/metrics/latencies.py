"""Latencies of queries and requests."""

from __future__ import annotations

from typing import Any

import numpy as np

from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.stats import FloatArray, IntArray, describe, describe_ns
from ttsim_des.metrics.tokens import gaps_in_window
from ttsim_des.metrics.window import Window, query_rows
from ttsim_des.records.tables import Tables


def tpot_ns(tables: Tables) -> FloatArray:
    """Time per output token of each request: (finish - first token) / (output - 1).

    NaN for requests that did not finish or delivered fewer than two tokens.
    """
    requests = tables.requests
    output, first = column(requests, "output_tokens"), column(requests, "first_token_ns")
    decoded = is_in(requests, "status", "finished") & (output >= 2) & (first >= 0)
    spans = (column(requests, "finish_ns") - first).astype(np.float64)
    return np.where(decoded, spans / np.maximum(output - 1, 1), np.nan)


def straggler_share(tables: Tables) -> FloatArray:
    """Per query: time between its first and its last sample's finish, as a share of the query's latency.

    Samples that finished by the time of the answer; NaN for queries with fewer than two of them.
    """
    queries, requests = tables.queries, tables.requests
    rows, finish = query_rows(queries, requests), column(requests, "finish_ns")
    answered = column(queries, "finish_ns")
    counted = is_in(requests, "status", "finished") & (finish <= answered[rows])
    first = np.full(answered.size, np.iinfo(np.int64).max)
    last = np.full(answered.size, -1, dtype=np.int64)
    np.minimum.at(first, rows[counted], finish[counted])
    np.maximum.at(last, rows[counted], finish[counted])
    samples = np.bincount(rows[counted], minlength=answered.size)
    latency = answered - column(queries, "arrival_ns")
    valid = (samples >= 2) & (latency > 0) & is_in(queries, "status", "finished")
    spread = np.where(valid, last - first, 0).astype(np.float64)
    return np.where(valid, spread / np.maximum(latency, 1), np.nan)


def query_section(tables: Tables, window: Window) -> dict[str, Any]:
    """Latencies of the queries that arrived in the window."""
    queries = tables.queries
    arrival, first = column(queries, "arrival_ns"), column(queries, "first_token_ns")
    finished = is_in(queries, "status", "finished") & window.queries
    shares = straggler_share(tables)[window.queries]
    requests = column(queries, "requests")[finished]
    return {
        "finished": int(finished.sum()),
        "open": int((is_in(queries, "status", "open") & window.queries).sum()),
        "refused": int((is_in(queries, "status", "refused") & window.queries).sum()),
        "latency_s": describe_ns((column(queries, "finish_ns") - arrival)[finished]),
        "ttft_s": describe_ns((first - arrival)[window.queries & (first >= 0)]),
        "straggler_share": describe(shares[~np.isnan(shares)]),
        "requests": describe(requests),
        "output_tokens": describe(column(queries, "output_tokens")[finished]),
    }


def request_section(tables: Tables, window: Window, tpot: FloatArray) -> dict[str, Any]:
    """Latencies of the requests of the queries that arrived in the window; gaps by the time of delivery."""
    requests = tables.requests
    arrival = column(requests, "arrival_ns")
    finished = is_in(requests, "status", "finished") & window.requests
    return {
        "finished": int(finished.sum()),
        "cancelled": int((is_in(requests, "status", "cancelled") & window.requests).sum()),
        "ttft_s": describe_ns(_since(arrival, column(requests, "first_token_ns"), window)),
        "tpot_s": describe_ns(tpot[window.requests & ~np.isnan(tpot)]),
        "itl_s": gaps_in_window(tables, window).describe_ns(),
        "e2e_s": describe_ns((column(requests, "finish_ns") - arrival)[finished]),
        "queueing_s": describe_ns(_since(arrival, column(requests, "scheduled_ns"), window)),
        "prompt_tokens": describe(column(requests, "prompt_tokens")[window.requests]),
        "output_tokens": describe(column(requests, "output_tokens")[finished]),
    }


def _since(arrival: IntArray, stamp: IntArray, window: Window) -> IntArray:
    return (stamp - arrival)[window.requests & (stamp >= 0)]
