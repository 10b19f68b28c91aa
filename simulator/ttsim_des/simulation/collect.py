"""From what lived in a simulation to the record tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from ttsim_des.records.arrow import arrow_column
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.records.tables import QUERIES, REQUESTS, STEPS, TOKEN_GAPS, Tables
from ttsim_des.simulation.client import QueryRun
from ttsim_des.workload.handle import Sample


def collect(runs: Sequence[QueryRun], recorders: Sequence[StepRecorder], end_ns: int) -> Tables:
    """The tables of a run that ended at `end_ns`."""
    by_id = sorted(runs, key=lambda run: run.query.query_id)
    samples = sorted((sample for run in runs for sample in run.query.samples), key=_request_id)
    query_of = {_request_id(sample): run.query.query_id for run in runs for sample in run.query.samples}
    return Tables(
        queries=_table(QUERIES, (_query_row(run) for run in by_id)),
        requests=_table(REQUESTS, (_request_row(sample, query_of[_request_id(sample)]) for sample in samples)),
        steps=pa.concat_tables([recorder.steps_table() for recorder in recorders] or [STEPS.empty_table()]),
        token_gaps=pa.concat_tables([recorder.gaps_table() for recorder in recorders] or [TOKEN_GAPS.empty_table()]),
        end_ns=end_ns,
    )


def _request_id(sample: Sample) -> int:
    return sample.request.request_id


def _table(schema: pa.Schema, rows: Iterable[tuple[int | str, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [arrow_column(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _query_row(run: QueryRun) -> tuple[int | str, ...]:
    samples = run.query.samples
    is_answered = run.finish_ns >= 0
    first_tokens = [sample.request.first_token_ns for sample in samples if sample.request.first_token_ns >= 0]
    wasted = [
        sample.request.num_output_tokens
        for sample in samples
        if sample.is_cancelled or (is_answered and sample.request.delivered_ns > run.finish_ns)
    ]
    return (
        run.query.query_id,
        run.arrival_ns,
        min(first_tokens, default=-1),
        run.finish_ns,
        "finished" if is_answered else "open",
        len(samples),
        samples[0].request.prompt_tokens,
        sum(sample.request.num_output_tokens for sample in samples),
        sum(wasted),
        _request_id(run.answer) if run.answer else -1,
        _request_id(run.straggler) if run.straggler else -1,
    )


def _request_row(sample: Sample, query_id: int) -> tuple[int | str, ...]:
    request = sample.request
    return (
        request.request_id,
        query_id,
        sample.index,
        _request_id(sample.parent) if sample.parent else -1,
        sample.pool,
        sample.replica,
        request.priority,
        request.arrival_ns,
        request.queued_ns,
        request.scheduled_ns,
        request.first_token_ns,
        request.finish_ns,
        request.status.value,
        request.finish_reason,
        request.prompt_tokens,
        request.cached_tokens,
        request.max_tokens,
        request.num_output_tokens,
        request.computed_tokens,
        request.recomputed_tokens,
        request.overshoot_tokens,
        request.preemptions,
    )
