"""One query's life as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.compute as pc

from ttsim_des.errors import InputError, Problem
from ttsim_des.records.long_table import whole
from ttsim_des.records.tables import GENERATOR, Tables
from ttsim_des.report.units import duration, number
from ttsim_des.units import NS_PER_S

Row = dict[str, Any]


def explain(tables: Tables, query_id: int) -> str:
    """What happened to a query, in order of time, times relative to its arrival.

    Raises InputError for an id that the run does not have, with the valid range.
    """
    all_queries, all_requests = whole(tables.queries), whole(tables.requests)
    queries = all_queries.filter(pc.equal(all_queries.column("query_id"), query_id)).to_pylist()
    if not queries:
        bounds = pc.min_max(all_queries.column("query_id")).as_py()
        valid = f"an id from {bounds['min']} to {bounds['max']}" if all_queries.num_rows else "a run with queries"
        raise InputError([Problem(f"this run has no query {query_id}", expected=valid)])
    requests = all_requests.filter(pc.equal(all_requests.column("query_id"), query_id)).to_pylist()
    return "\n".join(_lines(queries[0], requests, tables.end_ns)) + "\n"


def _lines(query: Row, requests: list[Row], end_ns: int) -> Iterator[str]:
    samples = f"{len(requests)} request{'s' if len(requests) != 1 else ''}"
    yield f"Query {query['query_id']}: {query['status']}, {samples}, {_outcome(query, end_ns)}"
    yield ""
    for time_ns, text in sorted(_events(query, requests), key=lambda event: event[0]):
        yield f"  {_relative(time_ns, query):>12}  {text}"
    yield ""
    yield "  sample  replica   queued   cached  computed   output     TTFT   finish  preempted  end"
    for request in requests:
        yield _sample_line(request, query)
    yield ""
    yield from _verdict(query, requests)


def _outcome(query: Row, end_ns: int) -> str:
    if query["status"] == "finished":
        return f"answered after {duration((query['finish_ns'] - query['arrival_ns']) / NS_PER_S)}"
    if query["status"] == "refused":
        return "never served"
    return f"still open after {duration((end_ns - query['arrival_ns']) / NS_PER_S)}"


def _relative(time_ns: int, query: Row) -> str:
    return f"+{(time_ns - query['arrival_ns']) / NS_PER_S:.6f} s"


def _events(query: Row, requests: list[Row]) -> Iterator[tuple[int, str]]:
    """(time, what happened); samples that share an instant share a line."""
    prompt = f"{number(query['prompt_tokens'])} prompt tokens"
    yield query["arrival_ns"], f"arrives {query['arrival_ns'] / NS_PER_S:.6f} s into the run, {prompt}"
    stories: tuple[tuple[str, str, Callable[[Row], str]], ...] = (
        ("arrival_ns", "sent", lambda _: ""),
        ("queued_ns", "noticed by the engine", _engine),
        ("scheduled_ns", "prefill starts", _cached),
        ("first_token_ns", "first token", lambda _: ""),
    )
    for stamp, text, detail in stories:
        together: dict[tuple[int, str], list[int]] = {}
        for request in requests:
            if request[stamp] >= 0:
                together.setdefault((request[stamp], detail(request)), []).append(request["sample"])
        for (time_ns, more), samples in together.items():
            yield time_ns, f"{_samples(samples)} {text}{more}"
    scored: dict[int, list[int]] = {}
    for request in requests:
        if request["finish_ns"] >= 0 and request["max_tokens"] == 0 and request["status"] == "finished":
            scored.setdefault(request["finish_ns"], []).append(request["sample"])
        elif request["finish_ns"] >= 0:
            reason = f" ({request['finish_reason']})" if request["finish_reason"] else ""
            tokens = f"{number(request['output_tokens'])} output tokens"
            yield request["finish_ns"], f"sample {request['sample']} {request['status']}{reason}, {tokens}"
    for time_ns, samples in scored.items():
        yield time_ns, f"{_samples(samples)} scored"
    if query["finish_ns"] >= 0:
        answer = next((r["sample"] for r in requests if r["request_id"] == query["answer_request_id"]), None)
        yield query["finish_ns"], "the answer is there" + ("" if answer is None else f": sample {answer}")


def _engine(request: Row) -> str:
    pool = "" if request["pool"] == GENERATOR else f" of the {request['pool']}"
    return f"{pool}, replica {request['replica']}"


def _cached(request: Row) -> str:
    return f", {number(request['cached_tokens'])} tokens from the prefix cache"


def _samples(indices: list[int]) -> str:
    if len(indices) == 1:
        return f"sample {indices[0]}"
    if indices == list(range(indices[0], indices[-1] + 1)):
        return f"samples {indices[0]}-{indices[-1]}"
    return "samples " + ", ".join(str(index) for index in indices)


def _sample_line(request: Row, query: Row) -> str:
    def since(stamp: str) -> str:
        return duration((request[stamp] - request["arrival_ns"]) / NS_PER_S) if request[stamp] >= 0 else "-"

    end = request["finish_reason"] or request["status"]
    if request["request_id"] == query["straggler_request_id"]:
        end += ", the straggler"
    if request["request_id"] == query["answer_request_id"]:
        end += ", the answer"
    cells = (
        (request["sample"], 6),
        (request["replica"], 7),
        (since("scheduled_ns"), 7),
        (number(request["cached_tokens"]), 7),
        (number(request["computed_tokens"]), 8),
        (number(request["output_tokens"]), 7),
        (since("first_token_ns"), 7),
        (since("finish_ns"), 7),
        (request["preemptions"], 9),
    )
    return "".join(f"  {cell:>{width}}" for cell, width in cells) + f"  {end}"


def _verdict(query: Row, requests: list[Row]) -> Iterator[str]:
    """Where the time went."""
    straggler = next((r for r in requests if r["request_id"] == query["straggler_request_id"]), None)
    if query["status"] == "finished" and straggler is not None:
        total = query["finish_ns"] - query["arrival_ns"]
        done = [r["finish_ns"] for r in requests if r["status"] == "finished" and r["finish_ns"] <= query["finish_ns"]]
        asked = straggler["arrival_ns"] - query["arrival_ns"]
        parts = [(asked, "waiting for what came before it")] if asked > 0 else []
        parts.append((straggler["scheduled_ns"] - straggler["arrival_ns"], "waiting to be scheduled"))
        if straggler["first_token_ns"] >= 0:
            parts.append((straggler["first_token_ns"] - straggler["scheduled_ns"], "prefill"))
            parts.append((straggler["finish_ns"] - straggler["first_token_ns"], "decoding"))
        else:
            parts.append((straggler["finish_ns"] - straggler["scheduled_ns"], "being read"))
        split = ", ".join(f"{duration(ns / NS_PER_S)} {text}" for ns, text in parts)
        yield f"  The straggler, sample {straggler['sample']}, spent {split}."
        if len(done) > 1 and total > 0:
            spread = max(done) - min(done)
            yield (
                f"  The first sample was done {duration(spread / NS_PER_S)} before the last: "
                f"{spread / total:.0%} of the query's time went by waiting for the straggler."
            )
    cancelled = sum(r["status"] == "cancelled" for r in requests)
    if cancelled or query["wasted_tokens"]:
        yield f"  Samples cancelled: {cancelled}; output tokens of no use: {number(query['wasted_tokens'])}."
    preemptions = sum(r["preemptions"] for r in requests)
    if preemptions:
        again = number(sum(r["recomputed_tokens"] for r in requests))
        yield f"  Preemptions for want of KV blocks: {preemptions}; tokens computed again: {again}."
