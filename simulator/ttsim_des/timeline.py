"""The one clock: SimPy's event loop in integer nanoseconds, with an explicit order at equal times.

At one instant things happen in the order of `Phase`, within a phase by `key`, never by order of creation: replaying
the same inputs in another order of set-up gives the same run. This is the only module that imports SimPy.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from enum import IntEnum
from heapq import heappush

import simpy
from simpy import Event

from ttsim_des.errors import NotValidError

__all__ = ["ARRIVAL", "REACTION", "SCHEDULE", "STEP_END", "Event", "Phase", "Timeline"]

_KEY_BITS = 48
CLOCK_END_NS = 2**62
"""Later times would not fit the 64-bit columns of the records."""


class Phase(IntEnum):
    """What comes first at one instant. Keys: replica index, query id, request id, replica index."""

    STEP_END = 0
    REACTION = 1
    ARRIVAL = 2
    SCHEDULE = 3


# A name of a module is found faster than a member of an enumeration.
STEP_END, REACTION, ARRIVAL, SCHEDULE = Phase


class _Call(Event):
    """An event that has been triggered and calls one function: what `Event` and `Environment.schedule` do, in one."""

    def __init__(self, env: simpy.Environment, callback: Callable[[Event], None]) -> None:
        self.env, self.callbacks = env, [callback]
        self._ok, self._value = True, None


class Timeline:
    """Callbacks at integer times.

    `now_ns`: the current time. `events` counts those taken from SimPy: the cost of a simulation.
    """

    def __init__(self) -> None:
        self._env = simpy.Environment(initial_time=0)
        self._queue = self._env._queue
        self.now_ns = 0
        self.events = 0

    def at(self, time_ns: int, phase: Phase, key: int, callback: Callable[[Event], None]) -> Event:
        """Call `callback` at `time_ns` (not before now), in its phase, in order of `key` (0 <= key < 2**48).

        Returns the event, for `cancel`. Raises NotValidError beyond the end of the clock.
        """
        if time_ns > CLOCK_END_NS:
            raise NotValidError(
                "simulated time passes 146 years, where the clock ends; shorten step times, waits or the run"
            )
        env = self._env
        assert time_ns >= self.now_ns, f"an event in the past: {time_ns} ns at {self.now_ns} ns"
        event = _Call(env, callback)
        # Any integer orders; SimPy's own count of events comes last.
        heappush(self._queue, (time_ns, phase << _KEY_BITS | key, next(env._eid), event))  # type: ignore[misc]
        return event

    @staticmethod
    def cancel(event: Event) -> None:
        """Let a future event pass without its callback."""
        event.callbacks.clear()

    def is_quiet_until(self, time_ns: int) -> bool:
        """Whether nothing is to happen up to and including `time_ns`, so that what would, may as well be done now."""
        queue = self._queue
        return not queue or queue[0][0] > time_ns

    def advance(self, time_ns: int) -> None:
        """Go on to `time_ns`, until which nothing is to happen: what happens then is done now."""
        assert self.is_quiet_until(time_ns)
        self.now_ns = time_ns

    def run(self) -> None:
        """Run until nothing is left to happen.

        The cyclic garbage collector rests meanwhile: it would walk every live request again and again (a quarter of the
        time), and a simulation leaves no cycles behind.
        """
        step, queue, events = self._env.step, self._queue, 0
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            while queue:
                events += 1
                self.now_ns = queue[0][0]  # type: ignore[assignment]  # integers in, integers out
                step()
        finally:
            self.events += events
            if was_enabled:
                gc.enable()
