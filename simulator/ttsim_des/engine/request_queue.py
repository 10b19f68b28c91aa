"""The two orders in which requests wait (vLLM's request_queue.py): first come first served, and by priority."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Protocol

from ttsim_des.engine.request import Request


class RequestQueue(Protocol):
    """Waiting requests; the head blocks those behind it."""

    def __len__(self) -> int: ...

    def peek(self) -> Request:
        """The request that is next; the queue must not be empty."""
        ...

    def pop(self) -> Request:
        """Take the next request out."""
        ...

    def add(self, request: Request) -> None:
        """A new request joins."""
        ...

    def put_back(self, request: Request) -> None:
        """A preempted request returns."""
        ...

    def remove(self, request: Request) -> None:
        """A cancelled request leaves; the others keep their order."""
        ...


class FcfsQueue(deque[Request]):
    """First come, first served; a preempted request returns to the head."""

    add = deque.append
    put_back = deque.appendleft

    def peek(self) -> Request:
        return self[0]

    def pop(self) -> Request:  # type: ignore[override]  # from the head
        return self.popleft()


class PriorityQueue(list[Request]):
    """Smallest (priority, arrival, name) first; a preempted request returns to its place by that key."""

    def peek(self) -> Request:
        return self[0]

    def pop(self) -> Request:  # type: ignore[override]  # from the head
        return super().pop(0)

    def add(self, request: Request) -> None:
        insort(self, request, key=_priority_key)

    def put_back(self, request: Request) -> None:
        self.add(request)

    def remove(self, request: Request) -> None:
        index = bisect_left(self, _priority_key(request), key=_priority_key)
        assert self[index] is request
        del self[index]


def _priority_key(request: Request) -> tuple[int, int, str, int]:
    return (request.priority, request.arrival_ns, request.name, request.request_id)


QUEUES: dict[str, type[FcfsQueue] | type[PriorityQueue]] = {"fcfs": FcfsQueue, "priority": PriorityQueue}
