"""A client learns of a result when the engine has handled it (`update` host time after the step), and not before."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from sim_rig import MS, world

from ttsim_des.workload.handle import Delay, Query, Sample, Wait

FLAT = {"constant_ns": MS}
BOTH_LOOPS = pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])


@BOTH_LOOPS
def test_a_result_is_delivered_when_it_has_been_handled(async_scheduling: bool) -> None:
    seen = world([4], [[1]], latency=FLAT, update_step_ns=400_000, async_scheduling=async_scheduling)
    assert seen.requests[0]["finish_ns"] == MS  # on the device
    assert seen.queries[0]["finish_ns"] == MS + 400_000  # at the client


@BOTH_LOOPS
def test_a_join_over_replicas_ends_with_the_last_delivery(async_scheduling: bool) -> None:
    seen = world(
        [4],
        [[1, 1, 1]],
        strategy="best_of_n",
        samples=3,
        replicas=2,
        latency=FLAT,
        update_sequence_ns=100_000,
        async_scheduling=async_scheduling,
    )
    # All end at 1 ms; the two on replica 0 are delivered at 1.2 ms, that on replica 1 at 1.1 ms.
    assert seen.column("replica") == [0, 1, 0]
    assert seen.queries[0]["finish_ns"] == 1_200_000
    assert seen.queries[0]["straggler_request_id"] == 2


def test_a_strategy_does_not_see_a_result_before_its_delivery() -> None:
    seen_done: list[bool] = []

    def looks_early(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
        sample = query.spawn()
        yield Delay(1_200_000)  # between the end of the step and the delivery
        seen_done.append(sample.is_done)
        yield query.join([sample])
        return sample

    seen = world([4], [[1]], strategy=looks_early, latency=FLAT, update_step_ns=400_000)
    assert seen_done == [False, False]  # leaping, stepping
    assert seen.queries[0]["finish_ns"] == 1_400_000
    assert seen.queries[0]["straggler_request_id"] == 0


def test_a_strategy_sees_how_many_tokens_a_running_sample_has() -> None:
    counts: list[int] = []

    def looks_around(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
        sample = query.spawn()
        yield Delay(5_500_000)
        counts.append(sample.output_tokens)
        yield query.join([sample])
        return sample

    world([4], [[9]], strategy=looks_around, latency=FLAT)
    assert counts == [5, 5]  # leaping, stepping


@BOTH_LOOPS
def test_cancels_cross_with_results(async_scheduling: bool) -> None:
    # The winner is known at 2.4 ms; the others' cancels reach an engine whose next step runs already.
    seen = world(
        [4],
        [[2, 3, 9]],
        strategy="best_of_n",
        samples=3,
        first=1,
        latency=FLAT,
        update_step_ns=400_000,
        async_scheduling=async_scheduling,
        max_tokens=9,
    )
    assert seen.requests[0]["status"] == "finished"
    assert seen.queries[0]["answer_request_id"] == 0
    assert seen.requests[2]["status"] == "cancelled"
    assert seen.queries[0]["wasted_tokens"] == sum(seen.column("output_tokens")[1:])
