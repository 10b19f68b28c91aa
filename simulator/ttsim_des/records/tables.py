"""The record tables: the only thing that the simulation leaves behind and the only thing that metrics read.

Times are integer nanoseconds since the start of the run; -1 stands for "did not happen".
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1

QUERIES = pa.schema(
    [
        ("query_id", pa.int64()),
        ("arrival_ns", pa.int64()),
        ("first_token_ns", pa.int64()),  # of any of its requests
        ("finish_ns", pa.int64()),  # the answer is there; -1 while open
        ("status", pa.string()),  # finished | open | refused
        ("requests", pa.int64()),
        ("prompt_tokens", pa.int64()),  # of one request
        ("output_tokens", pa.int64()),  # delivered, all requests
        ("wasted_tokens", pa.int64()),  # delivered by requests that were cancelled, or finished after the answer
        ("answer_request_id", pa.int64()),
        ("straggler_request_id", pa.int64()),  # the request whose finish completed the last join
    ]
)

REQUESTS = pa.schema(
    [
        ("request_id", pa.int64()),
        ("query_id", pa.int64()),
        ("sample", pa.int64()),  # index within the query, in order of spawning
        ("parent_request_id", pa.int64()),
        ("pool", pa.string()),
        ("replica", pa.int64()),
        ("priority", pa.int64()),
        ("arrival_ns", pa.int64()),  # left the client
        ("queued_ns", pa.int64()),  # noticed by the engine: at a step boundary
        ("scheduled_ns", pa.int64()),  # start of the first step that computes it
        ("first_token_ns", pa.int64()),
        ("finish_ns", pa.int64()),
        ("status", pa.string()),  # finished | cancelled | running | waiting | refused
        ("finish_reason", pa.string()),  # stop | length | "" when not finished
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),  # known tokens never computed thanks to the prefix cache
        ("max_tokens", pa.int64()),
        ("output_tokens", pa.int64()),  # delivered
        ("computed_tokens", pa.int64()),  # tokens that went through the model, recomputation included
        ("recomputed_tokens", pa.int64()),  # of these, positions computed before already (preemption)
        (
            "overshoot_tokens",
            pa.int64(),
        ),  # of these, beyond a stop learnt of a step late (asynchronous scheduling)
        ("preemptions", pa.int64()),
    ]
)

STEPS = pa.schema(
    [  # one row is `steps` consecutive steps of one batch; step j takes duration_ns + j * increment_ns on the device
        ("pool", pa.string()),
        ("replica", pa.int64()),
        ("start_ns", pa.int64()),  # of the first step, on the device
        ("steps", pa.int64()),
        ("period_ns", pa.int64()),  # start to start; equals duration_ns unless the host is the slower part
        ("period_increment_ns", pa.int64()),
        ("duration_ns", pa.int64()),
        ("increment_ns", pa.int64()),
        ("decode_seqs", pa.int64()),  # in each of the steps
        ("prefill_seqs", pa.int64()),
        ("prefill_tokens", pa.int64()),  # in each of the steps
        ("running", pa.int64()),
        ("waiting", pa.int64()),
        ("held_blocks", pa.int64()),  # referenced, after scheduling the first step
        ("cached_blocks", pa.int64()),  # free but still hittable
        ("preempted", pa.int64()),
        ("in_domain", pa.bool_()),
    ]
)

TOKEN_GAPS = pa.schema(
    [  # at delivery j of `steps`, each of `seqs` sequences has waited gap_ns + j * increment_ns since its last token
        ("pool", pa.string()),
        ("replica", pa.int64()),
        ("delivered_ns", pa.int64()),  # the first of the deliveries
        ("steps", pa.int64()),
        ("gap_ns", pa.int64()),
        ("increment_ns", pa.int64()),
        ("seqs", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Tables:
    """The four record tables of one run, rows sorted by id (queries, requests) or by (pool, replica, time)."""

    queries: pa.Table
    requests: pa.Table
    steps: pa.Table
    token_gaps: pa.Table
    end_ns: int
    """When the simulation ended."""
