"""Arrival traces: when each query arrived and, if known, how long its prompt and its outputs were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ttsim_des.errors import bad_input
from ttsim_des.scenario.schema import Arrivals
from ttsim_des.units import NS_PER_S
from ttsim_des.workload.columns import TOKENS_MAX, locate_file, read_columns, real_numbers, whole_numbers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE_KEY = "workload.arrivals.file"
ARRIVAL_S_MAX = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A trace in memory; row q is query q."""

    path: Path
    arrival_ns: NDArray[np.int64]
    """Non-decreasing, nanoseconds since the start of the run."""
    prompt_tokens: NDArray[np.int64] | None
    """Tokens of the query's own prompt, behind the shared prefix; `None` when the file has no such column."""
    output_tokens: NDArray[np.int64] | None
    """Output length of every sample of the query, before `max_tokens`; `None` when the file has no such column."""

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def first(self, queries: int) -> Trace:
        """What a run of so many queries replays: the first rows; `InputError` if there are fewer."""
        if queries > len(self):
            raise bad_input(
                f"{queries} queries asked of a trace of {len(self)} rows ({self.path})",
                key="experiment.queries",
                expected=f"at most {len(self)}",
            )
        prompts, outputs = self.prompt_tokens, self.output_tokens
        return Trace(
            self.path,
            self.arrival_ns[:queries],
            None if prompts is None else prompts[:queries],
            None if outputs is None else outputs[:queries],
        )

    def rate_per_s(self) -> float | None:
        """Mean arrival rate between the first and the last row; `None` when no time passes."""
        duration_ns = int(self.arrival_ns[-1] - self.arrival_ns[0])
        return (len(self) - 1) * NS_PER_S / duration_ns if duration_ns > 0 else None


def scenario_trace(arrivals: Arrivals, base_dir: Path) -> Trace | None:
    """The trace that a scenario replays; `None` for every other arrival process."""
    if arrivals.process != "trace":
        return None
    if arrivals.file is None:
        raise bad_input("process 'trace' needs a file", key=FILE_KEY, expected="a file name")
    return read_trace(arrivals.file, base_dir)


def read_trace(file: str, base_dir: Path) -> Trace:
    """Read a CSV, JSON Lines or Parquet trace.

    Columns: `arrival_s` (seconds since the start of the run, 0 to 1e9, in order; rounded to nanoseconds), and
    optionally `prompt_tokens` and `output_tokens` (whole numbers from 1); others are ignored.
    """
    import numpy as np

    path = locate_file(file, base_dir, FILE_KEY)
    table = read_columns(path, [("arrival_s", FILE_KEY)], ["prompt_tokens", "output_tokens"], FILE_KEY)
    arrival_s = real_numbers(table, "arrival_s", path, FILE_KEY, low=0, high=ARRIVAL_S_MAX)
    arrival_ns = np.rint(arrival_s * NS_PER_S).astype(np.int64)
    backward = np.flatnonzero(np.diff(arrival_ns) < 0)
    if backward.size:
        row = int(backward[0]) + 1
        raise bad_input(
            f"column 'arrival_s' of {path}, data row {row + 1}: {arrival_s[row]} comes before the row above it",
            key=FILE_KEY,
            expected="rows in order of arrival",
        )
    tokens: dict[str, NDArray[np.int64] | None] = {
        column: whole_numbers(table, column, path, FILE_KEY, low=1, high=TOKENS_MAX)
        if column in table.column_names
        else None
        for column in ("prompt_tokens", "output_tokens")
    }
    return Trace(path, arrival_ns, tokens["prompt_tokens"], tokens["output_tokens"])
