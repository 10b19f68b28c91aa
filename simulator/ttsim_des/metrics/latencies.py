"""Latencies of queries and requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsim_des.metrics.columns import column, is_in, pieces
from ttsim_des.metrics.stats import FloatArray, IntArray, describe, describe_ns
from ttsim_des.metrics.tokens import gaps_in_window
from ttsim_des.metrics.window import Window, query_rows
from ttsim_des.records.store import row_slices
from ttsim_des.records.tables import GENERATOR, Tables


def tpot_ns(tables: Tables) -> FloatArray:
    """Time per output token of each request: (finish - first token) / (output - 1).

    NaN for requests that did not finish or delivered fewer than two tokens.
    """
    requests = tables.requests
    finished = is_in(requests, "status", "finished")
    output, first = column(requests, "output_tokens"), column(requests, "first_token_ns")
    finish = column(requests, "finish_ns")
    times = np.full(output.size, np.nan)
    for part in row_slices(output.size):
        decoded = finished[part] & (output[part] >= 2) & (first[part] >= 0)
        spans = (finish[part] - first[part]).astype(np.float64)
        times[part][decoded] = (spans / np.maximum(output[part] - 1, 1))[decoded]
    return times


def straggler_share(tables: Tables) -> FloatArray:
    """Per query: time between its first and its last sample's finish, as a share of the query's latency.

    Samples that finished by the time of the answer; NaN for queries with fewer than two of them.
    """
    queries, requests = tables.queries, tables.requests
    rows, finish = query_rows(queries, requests), column(requests, "finish_ns")
    answered, ended = column(queries, "finish_ns"), is_in(requests, "status", "finished")
    first = np.full(answered.size, np.iinfo(np.int64).max)
    last = np.full(answered.size, -1, dtype=np.int64)
    samples = np.zeros(answered.size, dtype=np.int64)
    for part in row_slices(rows.size):
        counted = ended[part] & (finish[part] <= answered[rows[part]])
        owners, finishes = rows[part][counted], finish[part][counted]
        np.minimum.at(first, owners, finishes)
        np.maximum.at(last, owners, finishes)
        samples += np.bincount(owners, minlength=answered.size)
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
        "critical_tokens": describe(column(queries, "critical_tokens")[finished]),
        "in_flight": describe(_known(in_flight(tables)[finished])),
    }


def in_flight(tables: Tables) -> FloatArray:
    """Per query: its requests in flight, on average over its latency; NaN for queries that took no time or are open."""
    queries, requests = tables.queries, tables.requests
    rows, finish = query_rows(queries, requests), column(requests, "finish_ns")
    arrival, answered = column(requests, "arrival_ns"), column(queries, "finish_ns")
    stay = np.zeros(answered.size, dtype=np.float64)
    for part in row_slices(rows.size):
        until = np.where(finish[part] >= 0, np.minimum(finish[part], answered[rows[part]]), answered[rows[part]])
        spent = np.maximum(until - arrival[part], 0)
        stay += np.bincount(rows[part], weights=spent, minlength=answered.size)
    latency = answered - column(queries, "arrival_ns")
    return np.where((latency > 0) & (answered >= 0), stay / np.maximum(latency, 1), np.nan)


def request_section(tables: Tables, window: Window) -> dict[str, Any]:
    """Latencies of the generator's requests of the window's queries; gaps by the time of delivery."""
    requests = tables.requests
    counted = window.requests & is_in(requests, "pool", GENERATOR)
    finished = is_in(requests, "status", "finished") & counted
    return {
        "finished": int(finished.sum()),
        "cancelled": int((is_in(requests, "status", "cancelled") & counted).sum()),
        "ttft_s": describe_ns(_since_arrival(tables, "first_token_ns", counted)),
        "tpot_s": describe_ns(_known(tpot_ns(tables)[counted])),
        "itl_s": gaps_in_window(tables, window).describe_ns(),
        "e2e_s": describe_ns(_since_arrival(tables, "finish_ns", finished)),
        "queueing_s": describe_ns(_since_arrival(tables, "scheduled_ns", counted)),
        "prompt_tokens": describe(column(requests, "prompt_tokens")[counted]),
        "output_tokens": describe(column(requests, "output_tokens")[finished]),
    }


def _since_arrival(tables: Tables, name: str, which: NDArray[np.bool_]) -> IntArray:
    """From arrival to a stamp of the requests in question, where it happened."""
    stamp = column(tables.requests, name)
    which = which & (stamp >= 0)
    since = stamp[which]
    del stamp
    first = start = 0
    for arrival in pieces(tables.requests, "arrival_ns"):
        arrived = arrival[which[first : first + arrival.size]]
        since[start : start + arrived.size] -= arrived
        first, start = first + arrival.size, start + arrived.size
    return since


def _known(values: FloatArray) -> FloatArray:
    return values[~np.isnan(values)]
