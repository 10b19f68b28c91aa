"""What the answers were worth, and what could have been made of the same samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.stats import IntArray
from ttsim_des.metrics.window import Window, query_rows
from ttsim_des.records.tables import NO_ANSWER, RIGHT, UNKNOWN, Tables


def accuracy_section(tables: Tables, window: Window) -> dict[str, Any]:
    """Of the finished queries of the window whose samples have outcomes; null where none has.

    `share`: the strategy's own answers that are right. The others are of all samples that ended by themselves:
    `pass_at_1` the share of right ones, `majority` queries whose most frequent answer is right (ties in part),
    `pass_at_n` queries with a right one.
    """
    queries, requests = tables.queries, tables.requests
    finished = is_in(queries, "status", "finished") & window.queries
    answer = column(queries, "answer_id")
    known = finished & (answer != UNKNOWN)
    section: dict[str, Any] = {"queries": int(known.sum()), "share": None, "unanswered_share": None}
    section |= {"pass_at_1": None, "majority": None, "pass_at_n": None, "samples_per_query": None}
    if known.any():
        section["share"] = float((answer[known] == RIGHT).mean())
        section["unanswered_share"] = float((answer[known] == NO_ANSWER).mean())
    rows = query_rows(queries, requests)
    given = column(requests, "answer_id")
    counted = is_in(requests, "status", "finished") & (given != UNKNOWN) & finished[rows]
    if counted.any():
        section |= _of_samples(rows[counted], given[counted])
    return section


def _of_samples(rows: IntArray, answer: IntArray) -> dict[str, float]:
    """`rows`: the query of each sample."""
    asked, query = np.unique(rows, return_inverse=True)
    samples = np.bincount(query)
    right = np.bincount(query, weights=answer == RIGHT)
    return {
        "pass_at_1": float((right / samples).mean()),
        "majority": _majority(query, answer, asked.size),
        "pass_at_n": float((right > 0).mean()),
        "samples_per_query": float(samples.mean()),
    }


def _majority(query: IntArray, answer: IntArray, queries: int) -> float:
    voting = answer != NO_ANSWER
    pairs, votes = np.unique(np.stack((query[voting], answer[voting])), axis=1, return_counts=True)
    owners, ids = pairs
    most = np.zeros(queries, dtype=np.int64)
    np.maximum.at(most, owners, votes)
    leads: NDArray[np.bool_] = votes == most[owners]
    leaders = np.bincount(owners, weights=leads, minlength=queries)
    right = np.bincount(owners, weights=leads & (ids == RIGHT), minlength=queries)
    return float((right / np.maximum(leaders, 1)).mean())
