"""Recorded steps of speculative decoding: how many tokens were drafted and accepted, one row a step of a request."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ttsim_des.errors import bad_input
from ttsim_des.records.recorder import MOST_SPECULATIVE_TOKENS
from ttsim_des.workload.columns import codes, read_columns, whole_numbers

IntArray = NDArray[np.int64]


class RecordedSteps(NamedTuple):
    """Steps in the order in which they happened, request by request.

    `stream`: 0, 1, 2 ... by request; `position`: output tokens known before the step.
    """

    stream: IntArray
    drafts: IntArray
    accepted: IntArray
    position: IntArray

    def by_stream(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(drafts, accepted) of every step, request by request."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(int(self.stream.max()) + 1)]
        for stream, drafts, accepted in zip(self.stream, self.drafts, self.accepted, strict=True):
            found[int(stream)].append((int(drafts), int(accepted)))
        return tuple(map(tuple, found))


def read_steps(path: Path, key: str) -> RecordedSteps:
    """Columns drafts and accepted, one row a step; stream (the request), and output_tokens (known before) if there.

    Without output_tokens every request is taken to begin behind its first token. InputError where the file is no such
    table, naming the row.
    """
    table = read_columns(path, [("drafts", key), ("accepted", key)], ["stream", "output_tokens"], key)
    drafts = whole_numbers(table, "drafts", path, key, low=0, high=MOST_SPECULATIVE_TOKENS)
    accepted = whole_numbers(table, "accepted", path, key, low=0, high=MOST_SPECULATIVE_TOKENS)
    wrong = accepted > drafts
    if wrong.any():
        row = int(np.argmax(wrong))
        message = f"data row {row + 1} of {path}: {accepted[row]} accepted of {drafts[row]} drafts"
        raise bad_input(message, key=key, expected="no more than were drafted")
    names = table.column_names
    stream = codes(table, "stream", path, key) if "stream" in names else np.zeros(drafts.size, dtype=np.int64)
    order = np.argsort(stream, kind="stable")
    stream, drafts, accepted = stream[order], drafts[order], accepted[order]
    if "output_tokens" in names:
        position = whole_numbers(table, "output_tokens", path, key, low=0, high=10_000_000)[order]
    else:
        total = np.cumsum(1 + accepted) - (1 + accepted)
        firsts = np.flatnonzero(np.diff(stream, prepend=-1))
        position = 1 + total - np.repeat(total[firsts], np.diff(np.append(firsts, stream.size)))
    return RecordedSteps(stream, drafts, accepted, position)
