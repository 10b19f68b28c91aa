"""Collects steps and token gaps by columns while a simulation runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from ttsim_des.records.arrow import arrow_column
from ttsim_des.records.tables import STEPS, TOKEN_GAPS


class StepRow(NamedTuple):
    """What a step's record says besides time; columns as in `records.tables.STEPS`."""

    decode_seqs: int
    prefill_seqs: int
    prefill_tokens: int
    running: int
    waiting: int
    held_blocks: int
    cached_blocks: int
    preempted: int
    in_domain: bool


class StepRecorder:
    """Rows of the steps and token_gaps tables of one replica, in order of time."""

    def __init__(self, pool: str, replica: int) -> None:
        self.pool, self.replica = pool, replica
        self._steps: list[tuple[int | bool, ...]] = []
        self._gaps: list[tuple[int, ...]] = []

    def steps(
        self,
        row: StepRow,
        start_ns: int,
        steps: int,
        period_ns: int,
        period_increment_ns: int,
        duration_ns: int,
        increment_ns: int,
    ) -> None:
        """`steps` steps of one batch; columns as in `records.tables.STEPS`."""
        times = (start_ns, steps, period_ns, period_increment_ns, duration_ns, increment_ns)
        self._steps.append((*times, *row))

    def gaps(self, delivered_ns: int, steps: int, gap_ns: int, increment_ns: int, seqs: int) -> None:
        """`seqs` tokens at each of `steps` deliveries; columns as in `records.tables.TOKEN_GAPS`."""
        self._gaps.append((delivered_ns, steps, gap_ns, increment_ns, seqs))

    def steps_table(self) -> pa.Table:
        """The steps so far."""
        return self._table(STEPS, self._steps)

    def gaps_table(self) -> pa.Table:
        """The token gaps so far."""
        return self._table(TOKEN_GAPS, self._gaps)

    def _table(self, schema: pa.Schema, rows: list[tuple[int, ...]] | list[tuple[int | bool, ...]]) -> pa.Table:
        columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * (len(schema) - 2)
        columns = [[self.pool] * len(rows), [self.replica] * len(rows), *columns]
        arrays = [arrow_column(column, field.type) for column, field in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)
