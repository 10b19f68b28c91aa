"""Two queries at a time, worked out by hand to the nanosecond.

A step of T tokens takes 1,000,000 + 1,000 T + 7 (sum of decode contexts) + 3 (query-key pairs of prefill) ns. A
context counts the step's own token; n new tokens on c computed ones are n c + n (n + 1) / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Generator

from sim_rig import MS, Seen, world

from ttsim_des.router import home_replica
from ttsim_des.workload.handle import Delay, Query, Sample, Wait

FLAT = {"constant_ns": MS}


def test_two_single_queries() -> None:
    seen = world([10, 20], [[3], [2]], [0, 500_000])
    first = 1_000_000 + 10 * 1_000 + 3 * 55  # prompt of query 0: 10 * 11 / 2 = 55 pairs
    second = first + 1_000_000 + 21 * 1_000 + 7 * 11 + 3 * 210  # its second token and the prompt of query 1
    third = second + 1_000_000 + 2 * 1_000 + 7 * (12 + 21)
    assert (first, second, third) == (1_010_165, 2_031_872, 3_034_103)
    assert seen.column("queued_ns") == seen.column("scheduled_ns") == [0, first]
    assert seen.column("first_token_ns") == [first, second]
    assert seen.column("finish_ns") == seen.column("finish_ns", "queries") == [third, third]
    assert seen.column("arrival_ns", "queries") == [0, 500_000]
    assert seen.column("computed_tokens") == [12, 21]
    assert seen.column("answer_request_id", "queries") == [0, 1]
    assert seen.tables.end_ns == third


def best_of_two(**settings) -> Seen:
    return world([9, 9], [[1, 3], [2, 2]], [0, 100], strategy="best_of_n", samples=2, **settings)


def test_two_best_of_n_queries() -> None:
    seen = best_of_two()
    # The second sample hits two blocks (8 tokens) of the first one's prompt in the very same step.
    first = 1_000_000 + (9 + 1) * 1_000 + 3 * (45 + 9)
    second = first + 1_000_000 + (1 + 9 + 1) * 1_000 + 7 * 10 + 3 * (45 + 9)  # request 0 has ended
    third = second + 1_000_000 + 3 * 1_000 + 7 * (11 + 10 + 10)
    assert (first, second, third) == (1_010_162, 2_021_394, 3_024_611)
    assert seen.column("finish_ns") == [first, third, third, third]
    assert seen.column("cached_tokens") == [0, 8, 0, 8]
    assert seen.column("computed_tokens") == [9, 3, 10, 2]
    assert seen.column("finish_ns", "queries") == [third, third]
    assert seen.column("first_token_ns", "queries") == [first, second]
    assert seen.column("straggler_request_id", "queries") == [1, 3]
    assert seen.column("answer_request_id", "queries") == [-1, -1]  # which of several is chosen is left open
    assert seen.column("output_tokens", "queries") == [4, 4]


def test_two_best_of_n_queries_under_asynchronous_scheduling() -> None:
    seen = best_of_two(async_scheduling=True, max_tokens=3)
    # Steps 0 and 1 are planned at once; request 0 stops unforeseen, so that step 1 computes an overshoot token of it.
    first = 1_010_162
    second = first + 1_000_000 + 2 * 1_000 + 7 * (10 + 10)
    # Query 1, seen when step 0 is back, runs in step 2, beside the third token of request 1.
    third = second + 1_000_000 + (1 + 9 + 1) * 1_000 + 7 * 11 + 3 * (45 + 9)
    fourth = third + 1_000_000 + 2 * 1_000 + 7 * (10 + 10)
    assert seen.column("queued_ns") == [0, 0, first, first]
    assert seen.column("scheduled_ns") == [0, 0, second, second]
    assert seen.column("finish_ns") == [first, third, fourth, fourth]
    assert seen.column("overshoot_tokens") == [1, 0, 1, 1]
    # Both samples of query 1 stop at 2 tokens of at most 3: a whole step of overshoot follows, and ends the run.
    assert seen.tables.end_ns == fourth + 1_000_000 + 2 * 1_000 + 7 * (11 + 11)


def test_best_of_n_with_first_cancels_the_others() -> None:
    seen = world([4], [[5, 2, 9]], strategy="best_of_n", samples=3, first=1, latency=FLAT)
    assert seen.column("status") == ["cancelled", "finished", "cancelled"]
    # The client reacts at once, before the engine plans its next step.
    assert seen.column("finish_ns") == [2 * MS] * 3
    assert seen.column("output_tokens") == [2, 2, 2]
    assert seen.tables.end_ns == 2 * MS
    query = seen.queries[0]
    assert (query["finish_ns"], query["answer_request_id"], query["wasted_tokens"]) == (2 * MS, 1, 4)


def test_best_of_n_with_first_two_of_three() -> None:
    seen = world([4], [[5, 2, 9]], strategy="best_of_n", samples=3, first=2, latency=FLAT)
    assert seen.column("status") == ["finished", "finished", "cancelled"]
    assert seen.column("finish_ns") == [5 * MS, 2 * MS, 5 * MS]
    query = seen.queries[0]
    assert (query["finish_ns"], query["straggler_request_id"], query["answer_request_id"]) == (5 * MS, 0, -1)
    assert query["wasted_tokens"] == 5


def test_cancels_leave_after_the_turnaround_and_cost_a_step() -> None:
    seen = world([4], [[5, 2, 9]], strategy="best_of_n", samples=3, first=1, latency=FLAT, turnaround_ns=300_000)
    assert seen.queries[0]["finish_ns"] == 2 * MS  # the answer itself does not wait
    assert seen.column("finish_ns") == [3 * MS, 2 * MS, 3 * MS]
    assert seen.column("output_tokens") == [2, 2, 2]  # the running step's tokens are dropped
    assert seen.column("computed_tokens") == [6, 5, 6]  # but were computed


def test_turnaround_between_the_queries_of_a_closed_loop() -> None:
    seen = world([4, 4, 4], [[2], [3], [1]], concurrency=1, latency=FLAT, turnaround_ns=250_000)
    assert seen.column("arrival_ns", "queries") == [0, 2_250_000, 5_500_000]
    assert seen.column("finish_ns", "queries") == [2_000_000, 5_250_000, 6_500_000]


def test_a_closed_loop_keeps_its_concurrency() -> None:
    seen = world([4] * 6, [[3], [1], [1], [5], [2], [2]], concurrency=2, latency=FLAT)
    # 0: steps 1-3, 1: step 1, 2: step 2, 3: steps 3-7, 4 (after 0): steps 4-5, 5: steps 6-7
    assert seen.column("arrival_ns", "queries") == [0, 0, MS, 2 * MS, 3 * MS, 5 * MS]
    assert seen.column("finish_ns", "queries") == [3 * MS, MS, 2 * MS, 7 * MS, 5 * MS, 7 * MS]


def test_samples_of_a_query_enter_one_by_one() -> None:
    seen = world([4], [[2, 2, 2, 2]], strategy="best_of_n", samples=4, latency=FLAT, ingest_ns=300_000)
    assert seen.column("arrival_ns") == [0] * 4
    # Entering at 0.3, 0.6, 0.9 and 1.2 ms; a step runs from 0.3 to 1.3 ms.
    assert seen.column("queued_ns") == [300_000] + [1_300_000] * 3
    assert seen.column("first_token_ns") == [1_300_000] + [2_300_000] * 3
    assert seen.queries[0]["finish_ns"] == 3_300_000


def test_each_replica_has_a_front_end_of_its_own() -> None:
    seen = world([4], [[1] * 4], strategy="best_of_n", samples=4, latency=FLAT, ingest_ns=300_000, replicas=2)
    assert seen.column("replica") == [0, 1, 0, 1]
    assert seen.column("queued_ns") == [300_000, 300_000, 1_300_000, 1_300_000]


def test_a_cancel_of_a_sample_that_is_still_entering_waits_behind_it() -> None:
    seen = world([4], [[1, 9, 9, 9]], strategy="best_of_n", samples=4, first=1, latency=FLAT, ingest_ns=500_000)
    # Entering at 0.5, 1, 1.5, 2 ms; the first one ends at 1.5 ms. The last is cancelled as it enters.
    assert seen.column("status") == ["finished"] + ["cancelled"] * 3
    assert seen.queries[0]["finish_ns"] == 1_500_000
    assert seen.column("computed_tokens") == [4, 0, 0, 0]


# ---- routers ----


def test_round_robin() -> None:
    seen = world([4, 4], [[1] * 3] * 2, [0, 10], strategy="best_of_n", samples=3, replicas=2, latency=FLAT)
    assert seen.column("replica") == [0, 1, 0, 1, 0, 1]


def test_least_loaded_counts_what_has_just_been_sent() -> None:
    seen = world(
        [4] * 5, [[9], [1], [1], [1], [1]], [0, 0, 0, 3 * MS, 3 * MS], router="least_loaded", replicas=2, latency=FLAT
    )
    # Together: 0, 1, then a tie that goes to 0. At 3 ms only the first query is left, on 0.
    assert seen.column("replica") == [0, 1, 0, 1, 0]


def test_least_loaded_counts_what_is_still_entering() -> None:
    seen = world([4] * 4, [[1]] * 4, router="least_loaded", replicas=2, latency=FLAT, ingest_ns=MS)
    assert seen.column("replica") == [0, 1, 0, 1]


def test_query_affinity_keeps_samples_together_and_overflows() -> None:
    arrivals_ns = [0, 10 * MS, 20 * MS]
    seen = world(
        [8] * 3,
        [[1] * 4] * 3,
        arrivals_ns,
        strategy="best_of_n",
        samples=4,
        replicas=2,
        router="query_affinity",
        latency=FLAT,
    )
    for query in range(3):
        home = home_replica(query, 2)
        # The third finds 2 of 2 requests at home: not above 1.25 x 1, rounded up. The fourth finds 3 of 3 there,
        # above 1.25 x 1.5 rounded up.
        assert seen.column("replica")[4 * query : 4 * query + 4] == [home, home, home, 1 - home]


# ---- strategies of one's own ----


def tree(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
    """Two branches; the second is given up when the first has 3 tokens; a child goes on from the first."""
    one, other = query.spawn(tell_at=[3]), query.spawn()
    yield query.reach(one, 3)
    query.cancel([other])
    yield Delay(5_000_000)
    done = yield query.join([one])
    assert done == [one]
    child = query.spawn(parent=one)
    yield query.join([child])
    return child


def test_a_strategy_with_reach_cancel_delay_and_a_child() -> None:
    seen = world([6], [[6, 50, 2]], strategy=tree, latency=FLAT)
    one, other, child = seen.requests
    assert (one["finish_ns"], one["output_tokens"]) == (6 * MS, 6)
    assert (other["status"], other["finish_ns"], other["output_tokens"]) == ("cancelled", 3 * MS, 3)
    # The delay lasts from 3 to 8 ms; `one` has ended meanwhile, so the join is passed at once.
    assert child["arrival_ns"] == 8 * MS
    assert child["parent_request_id"] == one["request_id"]
    # Its prompt is 6 + 6 tokens. The last of them was never computed: two of three blocks can be hit.
    assert (child["prompt_tokens"], child["cached_tokens"]) == (12, 8)
    assert (child["finish_ns"], seen.queries[0]["finish_ns"]) == (10 * MS, 10 * MS)
    assert seen.queries[0]["answer_request_id"] == child["request_id"]
    assert seen.queries[0]["wasted_tokens"] == 3


def test_a_strategy_with_turnaround() -> None:
    seen = world([6], [[6, 50, 2]], strategy=tree, latency=FLAT, turnaround_ns=200_000)
    one, other, child = seen.requests
    assert (other["finish_ns"], other["output_tokens"]) == (4 * MS, 3)  # the cancel leaves at 3.2 ms
    assert child["arrival_ns"] == 8 * MS + 200_000
    assert child["finish_ns"] == 10 * MS + 200_000
    assert one["finish_ns"] == 6 * MS


def test_reaching_what_has_ended_before_returns_at_once() -> None:
    def strategy(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
        one = query.spawn(tell_at=[50])
        reached = yield query.reach(one, 50)
        assert reached == [one]
        assert one.is_done
        again = yield query.reach(one, 50)
        assert again == [one]
        return one

    assert world([4], [[3]], strategy=strategy, latency=FLAT).queries[0]["finish_ns"] == 3 * MS


def test_reaching_one_of_several_counts() -> None:
    def strategy(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
        one = query.spawn(tell_at=[2, 5, 7])
        yield query.reach(one, 5)
        query.cancel([one])
        return None

    seen = world([4], [[9]], strategy=strategy, latency=FLAT)
    assert seen.queries[0]["finish_ns"] == seen.requests[0]["finish_ns"] == 5 * MS
    assert seen.requests[0]["output_tokens"] == 5


def test_rounds_follow_each_other_without_a_gap() -> None:
    def rounds(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
        sample = None
        for _ in range(4):
            sample = query.spawn(parent=sample)
            yield query.join([sample])
        return sample

    seen = world([4], [[2, 2, 2, 2]], strategy=rounds, latency=FLAT)
    assert seen.column("finish_ns") == [2 * MS, 4 * MS, 6 * MS, 8 * MS]
    assert seen.column("prompt_tokens") == [4, 6, 8, 10]
    assert seen.column("cached_tokens") == [0, 4, 4, 8]


def test_a_query_answered_while_samples_still_run_counts_them_as_wasted() -> None:
    def hasty(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
        fast, _slow = query.spawn(), query.spawn()
        yield query.join([fast])
        return fast

    seen = world([4], [[2, 7]], strategy=hasty, latency=FLAT)
    assert seen.queries[0]["finish_ns"] == 2 * MS
    assert seen.column("status") == ["finished", "finished"]
    assert seen.column("finish_ns") == [2 * MS, 7 * MS]
    assert seen.queries[0]["wasted_tokens"] == 7
