"""From what lives in a simulation to the record tables: a query's rows are written as soon as it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ttsim_des.engine.request import CANCELLED, Status
from ttsim_des.records.long_table import LongTable, Part
from ttsim_des.records.recorder import StepRecorder, drafts_table, gaps_table, steps_table
from ttsim_des.records.store import BLOCK_BYTES, ColumnStore, row_packer, take_rows
from ttsim_des.records.tables import NO_ANSWER, QUERIES, REQUESTS, UNKNOWN, Tables
from ttsim_des.simulation.client import QueryRun
from ttsim_des.workload.handle import Sample

QUERY_STATUS = ("finished", "open")
REQUEST_STATUS = tuple(status.value for status in Status)
FINISH_REASONS = ("", "stop", "length")
_STATUSES = tuple(Status)
_REASON_NUMBER = {reason: number for number, reason in enumerate(FINISH_REASONS)}
_NO_DRAFTS = (0, 0, 0, 0)
_pack_query, _pack_request = row_packer(len(QUERIES)), row_packer(len(REQUESTS))
_ENDED = (Status.FINISHED, Status.CANCELLED)


class Collector:
    """Takes queries in when they are over, in any order, and forgets them.

    A query is over when it has an answer and the engines have done with all of its requests.
    """

    def __init__(self, pools: Sequence[str], recorders: Sequence[StepRecorder]) -> None:
        self.end_ns = 0
        """When the last query was answered."""
        self._pools = {pool: number for number, pool in enumerate(pools)}
        self._recorders = recorders
        self._queries, self._requests = ColumnStore(QUERIES.names), ColumnStore(REQUESTS.names)
        self._query_rows, self._request_rows = bytearray(), bytearray()
        self._answered: list[QueryRun] = []

    def on_answer(self, run: QueryRun) -> None:
        """A query has been answered; requests of it may still run."""
        self.end_ns = max(self.end_ns, run.finish_ns)
        if self._answered:
            self._answered = [earlier for earlier in self._answered if not self._take_if_over(earlier)]
        if not self._take_if_over(run):
            self._answered.append(run)

    def _take_if_over(self, run: QueryRun) -> bool:
        for sample in run.query.samples:
            if sample.request.status not in _ENDED:
                return False
        self._take(run)
        return True

    def _take(self, run: QueryRun) -> None:
        query_id, pools, rows = run.query.query_id, self._pools, self._request_rows
        for sample in run.query.samples:
            rows += _request_row(sample, query_id, pools)
        self._query_rows += _query_row(run)
        if len(rows) >= BLOCK_BYTES:
            self._pack()
        for recorder in self._recorders:
            recorder.pack()

    def _pack(self) -> None:
        self._queries.append(take_rows(self._query_rows, len(QUERIES)))
        self._requests.append(take_rows(self._request_rows, len(REQUESTS)))

    def tables(self, open_runs: Sequence[QueryRun], end_ns: int) -> Tables:
        """The tables of a run that ended at `end_ns`, with the queries that are open or not over then."""
        for run in (*self._answered, *open_runs):
            self._take(run)
        self._pack()
        texts = {"status": REQUEST_STATUS, "finish_reason": FINISH_REASONS, "pool": tuple(self._pools)}
        return Tables(
            queries=_sorted_table(QUERIES, self._queries, {"status": QUERY_STATUS}),
            requests=_sorted_table(REQUESTS, self._requests, texts),
            steps=steps_table(self._recorders),
            token_gaps=gaps_table(self._recorders),
            end_ns=end_ns,
            drafts=drafts_table(self._recorders),
        )


def _sorted_table(schema: pa.Schema, store: ColumnStore, texts: Mapping[str, Sequence[str]]) -> pa.Table | LongTable:
    """Rows by the first column, the id."""
    order = np.argsort(store.column(schema.names[0]), kind="stable").astype(np.int32)  # 10^9 rows and more: too many
    table = LongTable(schema, [Part(store, {})], texts, order)
    return table if table.is_long else table.to_table()


def _query_row(run: QueryRun) -> bytes:
    samples, finish_ns = run.query.samples, run.finish_ns
    first_token_ns, output_tokens, wasted_tokens = -1, 0, 0
    for sample in samples:
        request = sample.request
        tokens, first_ns = request.num_output_tokens, request.first_token_ns
        output_tokens += tokens
        if first_ns >= 0 and not 0 <= first_token_ns <= first_ns:
            first_token_ns = first_ns
        if request.status is CANCELLED or (finish_ns >= 0 and request.delivered_ns > finish_ns):
            wasted_tokens += tokens
    return _pack_query(
        run.query.query_id,
        run.arrival_ns,
        first_token_ns,
        finish_ns,
        0 if finish_ns >= 0 else 1,
        len(samples),
        samples[0].request.prompt_tokens,
        output_tokens,
        wasted_tokens,
        run.answer.request.request_id if run.answer else -1,
        run.straggler.request.request_id if run.straggler else -1,
        _answer_of(run),
        run.critical_tokens,
    )


def _request_row(sample: Sample, query_id: int, pools: Mapping[str, int]) -> bytes:
    request, parent = sample.request, sample.parent
    drafts = request.drafts
    return _pack_request(
        request.request_id,
        query_id,
        sample.index,
        parent.request.request_id if parent else -1,
        pools[sample.pool],
        sample.replica,
        request.priority,
        request.arrival_ns,
        request.queued_ns,
        request.scheduled_ns,
        request.first_token_ns,
        request.finish_ns,
        _STATUSES.index(request.status),
        _REASON_NUMBER[request.finish_reason],
        request.prompt_tokens,
        request.cached_tokens,
        request.max_tokens,
        request.num_output_tokens,
        request.computed_tokens,
        request.recomputed_tokens,
        request.overshoot_tokens,
        request.preemptions,
        *(_NO_DRAFTS if drafts is None else (drafts.steps, drafts.draft_tokens, drafts.accepted, drafts.rejected)),
        UNKNOWN if sample.verdict is None else sample.answer,
        sample.cause.request.request_id if sample.cause else -1,
        sample.think_ns,
    )


def _answer_of(run: QueryRun) -> int:
    """The id of a query's answer; NO_ANSWER where its samples have outcomes and nothing was chosen."""
    if run.answer is None:
        known = any(sample.verdict is not None for sample in run.query.samples)
        return NO_ANSWER if known and run.finish_ns >= 0 else UNKNOWN
    return UNKNOWN if run.answer.verdict is None else run.answer.answer
