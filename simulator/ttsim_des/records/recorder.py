"""Collects the records of a simulation by columns while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from ttsim_des.records.canonical import canonical_gaps, canonical_steps
from ttsim_des.records.long_table import LongTable, Part
from ttsim_des.records.store import BLOCK_BYTES, ColumnStore, IntMatrix, take_rows
from ttsim_des.records.tables import DRAFTS, GAP_COLUMNS, STEP_COLUMNS, STEPS, TOKEN_GAPS

MOST_SPECULATIVE_TOKENS = 64


class DraftCounts:
    """How often a replica drafted and accepted so many tokens in a step of a sequence: `drafted[d]`, `accepted[a]`."""

    __slots__ = ("accepted", "drafted")

    def __init__(self) -> None:
        self.drafted = [0] * (MOST_SPECULATIVE_TOKENS + 1)
        self.accepted = [0] * (MOST_SPECULATIVE_TOKENS + 1)

    def by_position(self) -> list[tuple[int, int, int]]:
        """(position from 1, times drafted, times accepted), as far as anything was drafted."""
        rows = []
        for position in range(1, MOST_SPECULATIVE_TOKENS + 1):
            drafted = sum(self.drafted[position:])
            if not drafted:
                break
            rows.append((position, drafted, sum(self.accepted[position:])))
        return rows


class StepRecorder:
    """Lines of the steps and token_gaps tables of one replica, in order of time.

    Add single ones, packed by `pack_step` and `pack_gap`, to `step_rows` and `gap_rows`; whole blocks of columns come
    by `add_steps` and `add_gaps`.
    """

    def __init__(self, pool: str, replica: int) -> None:
        self.step_rows, self.gap_rows = bytearray(), bytearray()
        self.draft_counts = DraftCounts()
        self._constants: dict[str, int | str] = {"pool": pool, "replica": replica}
        self._steps = _Runs(STEP_COLUMNS, canonical_steps)
        self._gaps = _Runs(GAP_COLUMNS, canonical_gaps)

    def pack(self, *, all_of_them: bool = False) -> None:
        """Turn lines into blocks of columns once there are many."""
        if all_of_them or len(self.step_rows) >= BLOCK_BYTES:
            self._steps.add(self.step_rows, is_last=all_of_them)
        if all_of_them or len(self.gap_rows) >= BLOCK_BYTES:
            self._gaps.add(self.gap_rows, is_last=all_of_them)

    def add_steps(self, block: IntMatrix) -> None:
        """Lines of steps, as (columns, lines)."""
        self.step_rows += block.T.tobytes()

    def add_gaps(self, block: IntMatrix) -> None:
        """Lines of token gaps, as (columns, lines)."""
        self.gap_rows += block.T.tobytes()

    def drafts_part(self) -> Part:
        """Lines of the drafts table."""
        store = ColumnStore(DRAFTS.names[2:])
        if rows := self.draft_counts.by_position():
            store.append(np.array(rows, dtype=np.int64).T)
        return Part(store, self._constants)

    def steps_part(self) -> Part:
        """The steps, once all are packed."""
        return Part(self._steps.store, self._constants)

    def gaps_part(self) -> Part:
        """The token gaps, once all are packed."""
        return Part(self._gaps.store, self._constants)


class _Runs:
    """Lines of runs in canonical form; the end of what has come stays open."""

    def __init__(self, names: Sequence[str], canonical: Callable[[IntMatrix], tuple[IntMatrix, IntMatrix]]) -> None:
        self.store = ColumnStore(names)
        self._canonical = canonical
        self._open = np.zeros((len(names), 0), dtype=np.int64)

    def add(self, rows: bytearray, *, is_last: bool) -> None:
        """Take all rows."""
        lines = np.concatenate((self._open, take_rows(rows, len(self.store.names))), axis=1)
        closed, self._open = self._canonical(lines)
        self.store.append(closed)
        if is_last:
            self.store.append(self._open)
            self._open = self._open[:, :0]


def run_table(schema: pa.Schema, parts: Sequence[Part]) -> pa.Table | LongTable:
    """The steps or the token gaps of all replicas as one table."""
    table = LongTable(schema, parts, {})
    return table if table.is_long else table.to_table()


def steps_table(recorders: Sequence[StepRecorder]) -> pa.Table | LongTable:
    """STEPS of all replicas; packs what has not been."""
    for recorder in recorders:
        recorder.pack(all_of_them=True)
    return run_table(STEPS, [recorder.steps_part() for recorder in recorders])


def drafts_table(recorders: Sequence[StepRecorder]) -> pa.Table:
    """DRAFTS of all replicas."""
    parts = [recorder.drafts_part() for recorder in recorders]
    return LongTable(DRAFTS, [part for part in parts if part.store.num_rows], {}).to_table()


def gaps_table(recorders: Sequence[StepRecorder]) -> pa.Table | LongTable:
    """TOKEN_GAPS of all replicas; packs what has not been."""
    for recorder in recorders:
        recorder.pack(all_of_them=True)
    return run_table(TOKEN_GAPS, [recorder.gaps_part() for recorder in recorders])
