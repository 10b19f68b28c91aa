"""Host (CPU) time of the engine, from the engine file."""

from __future__ import annotations

from typing import NamedTuple


class HostOverhead(NamedTuple):
    """Integer nanoseconds of CPU time around a step.

    Scheduling happens before a step is launched, updating after its result is there. Synchronous scheduling pays
    both between two steps; asynchronous scheduling hides them behind the step that is running, as long as they fit.
    `request_ns` is the front end's time per request, spent before the engine sees it.
    """

    schedule_step_ns: int = 0
    schedule_sequence_ns: int = 0
    update_step_ns: int = 0
    update_sequence_ns: int = 0
    request_ns: int = 0

    def schedule_ns(self, seqs: int) -> int:
        """Host time to schedule and launch a step of `seqs` sequences."""
        return self.schedule_step_ns + seqs * self.schedule_sequence_ns

    def update_ns(self, seqs: int) -> int:
        """Host time to handle the outputs of a step of `seqs` sequences."""
        return self.update_step_ns + seqs * self.update_sequence_ns
