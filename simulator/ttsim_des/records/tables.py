"""The record tables: the only thing that the simulation leaves behind and the only thing that metrics read.

Times are integer nanoseconds since the start of the run; -1 stands for "did not happen".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from ttsim_des.records.long_table import LongTable, whole
from ttsim_des.records.store import row_packer

SCHEMA_VERSION = 2
RIGHT, NO_ANSWER, UNKNOWN = 0, -1, -2
"""Answers by id: the right one, none, and one that nobody knows the worth of; others are wrong."""
GENERATOR = "generator"
"""The pool that every scenario has."""

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
        ("answer_id", pa.int64()),  # RIGHT, another answer's id, NO_ANSWER, or UNKNOWN without outcomes
        ("critical_tokens", pa.int64()),  # output of the requests that completed a join, one after the other
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
        ("draft_steps", pa.int64()),  # steps in which drafts of it were verified
        ("draft_tokens", pa.int64()),  # the drafts
        ("accepted_tokens", pa.int64()),  # of these, taken by the model; those behind a stop too
        ("rejected_tokens", pa.int64()),  # of these, computed in vain: not taken, or lost in a preemption
        ("answer_id", pa.int64()),  # as for queries; UNKNOWN also for scores and parts of chains
        ("cause_request_id", pa.int64()),  # whose end made the client ask for it; -1: the query's arrival
        ("think_ns", pa.int64()),  # what the strategy waited beside that (a tool), the turnaround not counted
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
        ("draft_tokens", pa.int64()),  # in each of the steps, beside one token for each of decode_seqs
        ("running", pa.int64()),
        ("waiting", pa.int64()),
        # All rows of a stretch (records.canonical) say what holds after the scheduling of its first step:
        ("held_blocks", pa.int64()),  # referenced
        ("cached_blocks", pa.int64()),  # free but still hittable
        ("preempted", pa.int64()),
        ("in_domain", pa.bool_()),
    ]
)

TOKEN_GAPS = pa.schema(
    [  # at delivery j of `steps`, each of `seqs` sequences has waited gap_ns + j * increment_ns since its last one
        ("pool", pa.string()),
        ("replica", pa.int64()),
        ("delivered_ns", pa.int64()),  # the first of the deliveries
        ("steps", pa.int64()),
        ("gap_ns", pa.int64()),
        ("increment_ns", pa.int64()),
        ("seqs", pa.int64()),
        ("extra_tokens", pa.int64()),  # at each delivery, of all these: accepted drafts, beside one token for each
    ]
)

DRAFTS = pa.schema(
    [  # how often the draft at `position` (from 1) within its step was verified and taken, over all requests
        ("pool", pa.string()),
        ("replica", pa.int64()),
        ("position", pa.int64()),
        ("drafted", pa.int64()),
        ("accepted", pa.int64()),
    ]
)

STEP_COLUMNS = STEPS.names[2:]
GAP_COLUMNS = TOKEN_GAPS.names[2:]
pack_step = row_packer(len(STEP_COLUMNS))
"""A line of STEPS of one replica: STEP_COLUMNS."""
pack_gap = row_packer(len(GAP_COLUMNS))
"""A line of TOKEN_GAPS of one replica: GAP_COLUMNS."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The record tables of one run, rows sorted by id (queries, requests) or by (pool, replica, time).

    Those with too many rows for memory are `LongTable`s.
    """

    queries: pa.Table | LongTable
    requests: pa.Table | LongTable
    steps: pa.Table | LongTable
    token_gaps: pa.Table | LongTable
    end_ns: int
    """When the simulation ended."""
    drafts: pa.Table = field(default_factory=DRAFTS.empty_table)

    def steps_of(self, pool: str) -> pa.Table | LongTable:
        """The steps of one pool."""
        return _of_pool(self.steps, pool)

    def of_pool(self, pool: str) -> Tables:
        """All queries, and what one pool did for them; tables in memory only."""
        requests, steps, gaps = (_of_pool(table, pool) for table in (self.requests, self.steps, self.token_gaps))
        return Tables(self.queries, requests, steps, gaps, self.end_ns, _of_pool(self.drafts, pool))

    def in_memory(self) -> Tables:
        """The same with all rows in memory, however many."""
        queries, requests, steps, token_gaps = map(whole, (self.queries, self.requests, self.steps, self.token_gaps))
        return Tables(queries, requests, steps, token_gaps, self.end_ns, self.drafts)


def _of_pool(table: pa.Table | LongTable, pool: str) -> pa.Table | LongTable:
    if isinstance(table, LongTable):
        return LongTable(table.schema, [part for part in table.parts if part.constants["pool"] == pool], table.texts)
    pools = table.column("pool").combine_chunks().dictionary_encode().dictionary.to_pylist()
    if pools in ([], [pool]):
        return table  # without the filter, which would import pandas
    import pyarrow.compute as pc

    return table.filter(pc.equal(table.column("pool"), pool))
