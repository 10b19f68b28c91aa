"""Which replica serves a request.

A router sees the query's id and the replicas' loads (requests running + waiting), nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

Policy = Literal["round_robin", "least_loaded", "query_affinity"]

_MASK = (1 << 64) - 1


class Router:
    """A policy together with its only state, whose turn it is."""

    __slots__ = ("_policy", "replicas", "turn")

    def __init__(self, policy: Policy, replicas: int) -> None:
        self._policy = POLICIES[policy]
        self.replicas = replicas
        self.turn = 0

    def choose(self, query_id: int, loads: Sequence[int]) -> int:
        """The replica, from 0, for the next request of a query; `loads` holds running + waiting of each replica."""
        return self._policy(self, query_id, loads) if self.replicas > 1 else 0


def make_router(policy: Policy, replicas: int) -> Router:
    """A router over `replicas` replicas."""
    return Router(policy, replicas)


def home_replica(query_id: int, replicas: int) -> int:
    """A query's home: a fixed hash of its id (the finaliser of SplitMix64), the same in every process."""
    z = (query_id + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) * replicas) >> 64


def _round_robin(router: Router, query_id: int, loads: Sequence[int]) -> int:
    """Each request to the next replica in turn."""
    replica = router.turn
    router.turn = (replica + 1) % router.replicas
    return replica


def _least_loaded(router: Router, query_id: int, loads: Sequence[int]) -> int:
    """The replica with the fewest requests; the first of several."""
    return loads.index(min(loads))


def _query_affinity(router: Router, query_id: int, loads: Sequence[int]) -> int:
    """The query's home, so that its samples find their prompt in the cache; the least loaded when home is overfull.

    Overfull is a load above 1.25 x the mean load, rounded up to whole requests: one request more than the others have
    never drives a query from home.
    """
    home = home_replica(query_id, router.replicas)
    overfull = loads[home] > -(-5 * sum(loads) // (4 * router.replicas))
    return loads.index(min(loads)) if overfull else home


POLICIES: dict[Policy, Callable[[Router, int, Sequence[int]], int]] = {
    "round_robin": _round_robin,
    "least_loaded": _least_loaded,
    "query_affinity": _query_affinity,
}
