"""A finished run as recorded graphs: every request a node that starts when the one that caused it is done.

Replaying them in the same scenario gives the same requests at the same times: what a strategy decided is written down,
why it did so is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ttsim_des.records.long_table import whole
from ttsim_des.records.tables import Tables
from ttsim_des.units import ns_to_s

COLUMNS = (
    *("request_id", "query_id", "parent_request_id", "cause_request_id", "think_ns", "pool", "status"),
    *("prompt_tokens", "max_tokens", "output_tokens", "finish_reason"),
)
Row = Mapping[str, Any]


def graph_lines(tables: Tables) -> Iterator[str]:
    """The nodes of all queries, one JSON object a line, query by query in the order of their ids."""
    answers = {row["query_id"]: row["straggler_request_id"] for row in whole(tables.queries).to_pylist()}
    by_query: dict[int, list[Row]] = {query_id: [] for query_id in sorted(answers)}
    for row in whole(tables.requests).select(COLUMNS).to_pylist():
        by_query[row["query_id"]].append(row)
    for query_id, rows in by_query.items():
        for node in _nodes(query_id, rows, answers[query_id]):
            yield json.dumps(node)


def _nodes(query_id: int, rows: Sequence[Row], last_id: int) -> Iterator[dict[str, Any]]:
    by_id = {row["request_id"]: row for row in rows}
    for row in rows:
        request_id, cause, parent = row["request_id"], row["cause_request_id"], row["parent_request_id"]
        parents = [] if cause < 0 else [str(cause)]
        if row["think_ns"]:
            name = f"before {request_id}"
            delay = {"kind": "delay", "parents": parents, "delay_s": ns_to_s(row["think_ns"])}
            yield {"graph": query_id, "node": name, **delay}
            parents = [name]
        node: dict[str, Any] = {"graph": query_id, "node": str(request_id), "pool": row["pool"], "parents": parents}
        before = 0
        if parent >= 0:
            node["kv_parent"] = str(parent)
            before = by_id[parent]["prompt_tokens"] + by_id[parent]["output_tokens"]
            if str(parent) not in parents:
                parents.append(str(parent))
        if parent >= 0 and row["prompt_tokens"] > before:
            node["append_tokens"] = row["prompt_tokens"] - before
        if row["max_tokens"] == 0:
            node["kind"] = "score"
        else:
            # One that was cancelled, or cut at its cap, goes on until that happens again.
            ended = row["status"] == "finished" and row["finish_reason"] == "stop"
            node["tokens"] = row["output_tokens"] if ended else row["max_tokens"] + 1
            node["max_tokens"] = row["max_tokens"]
        if request_id == last_id:
            node["answers"] = True
        yield node
