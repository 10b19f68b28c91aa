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


class FcfsQueue:
    """First come, first served; a preempted request returns to the head."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def peek(self) -> Request:
        return self._requests[0]

    def pop(self) -> Request:
        return self._requests.popleft()

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def put_back(self, request: Request) -> None:
        self._requests.appendleft(request)

    def remove(self, request: Request) -> None:
        self._requests.remove(request)


class PriorityQueue:
    """Smallest (priority, arrival, name) first; a preempted request returns to its place by that key."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def peek(self) -> Request:
        return self._requests[0]

    def pop(self) -> Request:
        return self._requests.pop(0)

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=_priority_key)

    def put_back(self, request: Request) -> None:
        self.add(request)

    def remove(self, request: Request) -> None:
        index = bisect_left(self._requests, _priority_key(request), key=_priority_key)
        assert self._requests[index] is request
        del self._requests[index]


def _priority_key(request: Request) -> tuple[int, int, str, int]:
    return (request.priority, request.arrival_ns, request.name, request.request_id)


QUEUES: dict[str, type[FcfsQueue] | type[PriorityQueue]] = {"fcfs": FcfsQueue, "priority": PriorityQueue}
