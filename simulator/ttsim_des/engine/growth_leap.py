"""`Leap` for a batch that drafts: its steps are known in advance, but no two of them need be alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ttsim_des.engine.growth import IntArray
from ttsim_des.records.recorder import StepRecorder
from ttsim_des.records.tables import GAP_COLUMNS, STEP_COLUMNS


class GrowthLeap:
    """The next `pops` pops of a batch that drafts, and as many steps launched meanwhile; see `Leap`.

    `described`: the columns of the steps table from decode_seqs to preempted, of the first step.
    `extra_tokens`: accepted drafts that each pop delivers.
    """

    def __init__(
        self,
        durations_ns: IntArray,
        in_domain: NDArray[np.bool_] | bool,
        draft_tokens: IntArray,
        extra_tokens: IntArray,
        start_ns: int,
        host_ns: int,
        first_update_ns: int,
        update_ns: int,
        is_async: bool,
        described: tuple[int, ...],
    ) -> None:
        self.pops = size = durations_ns.size
        if not isinstance(in_domain, bool):  # up to the domain's edge
            differs = in_domain != in_domain[0]
            self.pops = int(differs.argmax()) or size
        self.first_update_ns, self.update_ns = first_update_ns, update_ns
        self.cut_ns = -1
        self._durations_ns, self._in_domain, self._draft_tokens = durations_ns, in_domain, draft_tokens
        self._extra_tokens, self._described = extra_tokens, described
        starts_ns = np.empty(size, dtype=np.int64)
        starts_ns[0] = start_ns
        if is_async:
            periods_ns = np.maximum(durations_ns[:-1], host_ns + update_ns)
            if periods_ns.size:
                periods_ns[0] = max(int(durations_ns[0]), host_ns + first_update_ns)
        else:
            periods_ns = durations_ns[:-1] + (host_ns + update_ns)
        periods_ns.cumsum(out=starts_ns[1:])
        starts_ns[1:] += start_ns
        self._starts_ns = starts_ns
        self._pops_ns = starts_ns if is_async else starts_ns + durations_ns
        self.first_duration_ns = int(durations_ns[0])
        self.first_pop_ns = int(self._pops_ns[0])

    @property
    def last_pop_ns(self) -> int:
        """When the last pop happens."""
        return int(self._pops_ns[self.pops - 1])

    @property
    def last_end_ns(self) -> int:
        """When the last step ends on the device."""
        return int(self._starts_ns[self.pops - 1] + self._durations_ns[self.pops - 1])

    def record(self, recorder: StepRecorder, pops: int) -> None:
        """Leave lines in the steps table, and of the first `pops` pops but the very first in that of token gaps."""
        self._record_steps(recorder)
        if pops > 1:
            self._record_gaps(recorder, pops)

    def _record_steps(self, recorder: StepRecorder) -> None:
        pops, described = self.pops, self._described
        lines = np.empty((len(STEP_COLUMNS), pops), dtype=np.int64)
        lines[:] = np.array((0, 1, 0, 0, 0, 0, *described, 0), dtype=np.int64)[:, np.newaxis]
        lines[0] = self._starts_ns[:pops]
        lines[2] = lines[4] = self._durations_ns[:pops]
        lines[9] = self._draft_tokens[:pops]
        lines[-1] = self._in_domain if isinstance(self._in_domain, bool) else self._in_domain[:pops]
        recorder.add_steps(lines)

    def _record_gaps(self, recorder: StepRecorder, pops: int) -> None:
        times_ns = self._pops_ns[:pops]
        lines = np.empty((len(GAP_COLUMNS), pops - 1), dtype=np.int64)
        lines[0], lines[1] = times_ns[1:], 1
        np.subtract(times_ns[1:], times_ns[:-1], out=lines[2])
        lines[3], lines[4] = 0, self._described[0]
        lines[5] = self._extra_tokens[1:pops]
        recorder.add_gaps(lines)

    def pop_ns(self, index: int) -> int:
        """When pop `index` (from 0) happens."""
        return int(self._pops_ns[index])

    def cut(self, pops: int) -> None:
        """End the leap after its first `pops` pops."""
        self.pops = pops

    def first_pop_seeing(self, time_ns: int) -> int:
        """The first pop after which the engine's look at its inputs is not before `time_ns`; else the last."""
        if self.pops == 1 or self.first_pop_ns + self.first_update_ns >= time_ns:
            return 0
        found = int(self._pops_ns[: self.pops].searchsorted(time_ns - self.update_ns))
        return min(max(1, found), self.pops - 1)
