"""The one clock: SimPy's event loop in integer nanoseconds, with an explicit order at equal times.

At one instant things happen in the order of `Phase`, within a phase by `key`, never by order of creation: replaying
the same inputs in another order of set-up gives the same run. This is the only module that imports SimPy.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import simpy

_KEY_BITS = 48


class Phase(IntEnum):
    """What comes first at one instant. Keys: replica index, query id, request id, replica index."""

    STEP_END = 0
    REACTION = 1
    ARRIVAL = 2
    SCHEDULE = 3


class Timeline:
    """Callbacks at integer times. `events` counts those that ran: the cost of a simulation, in events."""

    def __init__(self) -> None:
        self._env = simpy.Environment(initial_time=0)
        self.events = 0

    @property
    def now_ns(self) -> int:
        """The current time."""
        return self._env.now  # type: ignore[return-value]  # integers in, integers out

    def at(self, time_ns: int, phase: Phase, key: int, callback: Callable[[], None]) -> None:
        """Call `callback` at `time_ns` (not before now), in its phase, in order of `key` (0 <= key < 2**48)."""
        delay_ns = time_ns - self.now_ns
        assert delay_ns >= 0, f"an event in the past: {delay_ns} ns"
        event = simpy.Event(self._env)
        event._ok, event._value = True, None
        event.callbacks.append(lambda _event: callback())
        priority = (int(phase) << _KEY_BITS) | key
        self._env.schedule(event, priority, delay_ns)  # type: ignore[arg-type]  # any integer orders

    def run(self) -> None:
        """Run until nothing is left to happen."""
        step, queue = self._env.step, self._env._queue
        while queue:
            step()
            self.events += 1
