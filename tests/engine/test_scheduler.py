"""The rules of vLLM V1's scheduler, each in a world small enough to work out by hand. Steps take 1 ms, blocks hold 4.

A step is written as {request: (tokens, computed before)}, in schedule order.
"""

from __future__ import annotations

import pytest
from engine_rig import MS, World, play

from ttsim_des.engine.request import Request
from ttsim_des.engine.request_queue import PriorityQueue

BOTH_POLICIES = pytest.mark.parametrize("policy", ["fcfs", "priority"])
"""The engine core plans preemption by different code for the two."""


def ordered(*steps: dict[str, tuple[int, int]]) -> list[list[tuple[str, tuple[int, int]]]]:
    return [list(step.items()) for step in steps]


def schedule(world: World) -> list[list[tuple[str, tuple[int, int]]]]:
    return ordered(*world.steps)


# ---- budget, chunks, seats ----


def test_tokens_are_dealt_out_in_order_of_admission_and_the_last_prompt_gets_the_rest() -> None:
    def build(world: World) -> None:
        world.ask("a", 3, 3)
        world.ask("b", 3, 2)
        world.ask("c", 5, 2)

    world = play(build, max_num_batched_tokens=8)
    assert schedule(world) == ordered(
        {"a": (3, 0), "b": (3, 0), "c": (2, 0)},
        {"a": (1, 3), "b": (1, 3), "c": (3, 2)},
        {"a": (1, 4), "c": (1, 5)},
    )
    assert world.tokens_ns == {"a": [MS, 2 * MS, 3 * MS], "b": [MS, 2 * MS], "c": [2 * MS, 3 * MS]}


def test_a_long_prompt_goes_on_before_anybody_else_is_admitted() -> None:
    def build(world: World) -> None:
        world.ask("a", 10, 1)
        world.ask("b", 2, 1)

    world = play(build, max_num_batched_tokens=4)
    assert schedule(world) == ordered({"a": (4, 0)}, {"a": (4, 4)}, {"a": (2, 8), "b": (2, 0)})


def test_running_requests_may_use_up_the_whole_budget() -> None:
    def build(world: World) -> None:
        for name in "abc":
            world.ask(name, 1, 3)
        world.ask("d", 1, 1)

    world = play(build, max_num_batched_tokens=3)
    assert [list(step) for step in world.steps] == [["a", "b", "c"]] * 3 + [["d"]]


def test_without_chunked_prefill_a_prompt_that_does_not_fit_the_budget_stops_admission() -> None:
    def build(world: World) -> None:
        world.ask("a", 5, 2)
        world.ask("b", 5, 1)
        world.ask("c", 2, 1)  # would fit beside a

    world = play(build, max_num_batched_tokens=8, enable_chunked_prefill=False)
    assert schedule(world) == ordered({"a": (5, 0)}, {"a": (1, 5), "b": (5, 0), "c": (2, 0)})


def test_seats_are_given_as_they_become_free() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 2)
        world.ask("b", 4, 4)
        world.ask("c", 4, 1)

    world = play(build, max_num_seqs=2)
    assert schedule(world) == ordered(
        {"a": (4, 0), "b": (4, 0)}, {"a": (1, 4), "b": (1, 4)}, {"b": (1, 5), "c": (4, 0)}, {"b": (1, 6)}
    )


def test_long_prefill_threshold_caps_chunks() -> None:
    def build(world: World) -> None:
        world.ask("a", 5, 1)
        world.ask("b", 4, 1)

    world = play(build, max_num_batched_tokens=8, long_prefill_token_threshold=3)
    assert schedule(world) == ordered({"a": (3, 0), "b": (3, 0)}, {"a": (2, 3), "b": (1, 3)})


def test_long_prefill_threshold_does_not_bind_a_lone_request_decided_anew_each_step() -> None:
    def build(world: World) -> None:
        world.ask("a", 20, 1)
        world.ask("b", 4, 1, at_ns=MS // 2)

    world = play(build, max_num_batched_tokens=6, long_prefill_token_threshold=3)
    assert schedule(world) == ordered(
        {"a": (6, 0)},  # alone
        {"a": (3, 6), "b": (3, 0)},
        {"a": (3, 9), "b": (1, 3)},
        {"a": (6, 12)},  # alone again
        {"a": (2, 18)},
    )


def test_a_waiting_request_is_company_too() -> None:
    def build(world: World) -> None:
        world.ask("a", 8, 1)
        world.ask("b", 1, 1)

    world = play(build, max_num_seqs=1, long_prefill_token_threshold=6)
    assert schedule(world) == ordered({"a": (6, 0)}, {"a": (2, 6)}, {"b": (1, 0)})


# ---- KV blocks: admission ----


def test_a_request_that_does_not_fit_blocks_those_behind_it() -> None:
    def build(world: World) -> None:
        world.ask("a", 12, 4)  # 3 blocks, then 4
        world.ask("b", 16, 1)  # 4 blocks
        world.ask("c", 4, 1)  # would fit

    world = play(build, usable_blocks=6)
    assert [list(step) for step in world.steps] == [["a"]] * 4 + [["b", "c"]]
    assert world.requests["c"].scheduled_ns == 4 * MS


def test_reserve_full_isl_admits_only_what_fits_as_a_whole() -> None:
    def build(world: World) -> None:
        world.ask("a", 8, 3)
        world.ask("b", 16, 1)

    reserved = play(build, usable_blocks=5, max_num_batched_tokens=12)
    assert [list(step) for step in reserved.steps] == [["a"]] * 3 + [["b"]] * 2
    chunkwise = play(build, usable_blocks=5, max_num_batched_tokens=12, scheduler_reserve_full_isl=False)
    assert list(chunkwise.steps[0].items()) == [("a", (8, 0)), ("b", (4, 0))]


def test_reserve_full_isl_counts_the_outputs_of_a_resumed_request() -> None:
    # c is preempted with 5 known tokens: 2 blocks. A single free one is not enough even for its first chunk of 4.
    def build(world: World) -> None:
        for name in "abc":
            world.ask(name, 4, 4)

    def chunk_of_four(reserve: bool) -> World:
        return play(
            build,
            usable_blocks=5,
            max_num_batched_tokens=12,
            long_prefill_token_threshold=4,
            scheduler_reserve_full_isl=reserve,
        )

    assert "c" not in chunk_of_four(True).steps[2]
    assert chunk_of_four(False).steps[2]["c"] == (4, 0)


def test_watermark_leaves_blocks_free_at_admission_while_others_run() -> None:
    def build(blocks: int) -> World:
        def ask(world: World) -> None:
            world.ask("a", 4, 4)
            world.ask("b", blocks * 4, 1, at_ns=MS // 2)

        return play(ask, usable_blocks=10, watermark_blocks=2)

    # Seen at 1 ms, when a has its second block: 8 are free and 2 of them must stay so.
    assert build(6).requests["b"].scheduled_ns == MS
    assert build(7).requests["b"].scheduled_ns == 4 * MS  # a has ended


def test_watermark_binds_behind_a_request_admitted_in_the_same_step() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 1)
        world.ask("b", 32, 1)

    assert [list(step) for step in play(build, usable_blocks=10, watermark_blocks=2).steps] == [["a"], ["b"]]
    assert [list(step) for step in play(build, usable_blocks=10, watermark_blocks=1).steps] == [["a", "b"]]


def test_watermark_binds_neither_an_empty_engine_nor_a_running_request() -> None:
    def build(world: World) -> None:
        world.ask("a", 24, 17)  # 6 blocks at once, all 10 in the end

    world = play(build, usable_blocks=10, watermark_blocks=9)
    assert world.requests["a"].scheduled_ns == 0
    assert world.requests["a"].preemptions == 0
    assert len(world.steps) == 17


# ---- KV blocks: preemption ----


def test_fcfs_preempts_the_latest_admitted_and_resumes_it_first() -> None:
    def build(world: World) -> None:
        for name in "abc":
            world.ask(name, 4, 3)
        world.ask("d", 4, 1, at_ns=MS // 2)

    world = play(build, usable_blocks=4)
    assert schedule(world) == ordered(
        {"a": (4, 0), "b": (4, 0), "c": (4, 0)},
        {"a": (1, 4), "b": (1, 4)},  # b takes the block of c; nobody is admitted in such a step
        {"a": (1, 5), "b": (1, 5)},
        {"c": (5, 0), "d": (4, 0)},  # known tokens and the one delivered are one prefill
        {"c": (1, 5)},
    )
    assert world.victims == [[], ["c"], [], [], []]
    c = world.requests["c"]
    assert (c.preemptions, c.recomputed_tokens, c.computed_tokens) == (1, 4, 10)
    assert world.tokens_ns["c"] == [MS, 4 * MS, 5 * MS]


@BOTH_POLICIES
def test_nobody_is_admitted_in_a_step_that_preempts(policy: str) -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 4)
        world.ask("b", 4, 4, priority=1)

    # b leaves a block free, enough for the first chunk of its return; it must wait for the next step all the same.
    world = play(
        build,
        usable_blocks=3,
        scheduler_reserve_full_isl=False,
        long_prefill_token_threshold=4,
        scheduling_policy=policy,
    )
    assert schedule(world)[1:3] == ordered({"a": (1, 4)}, {"a": (1, 5), "b": (4, 0)})
    assert world.victims[1] == ["b"]


def test_a_request_may_be_its_own_victim() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 2)
        world.ask("b", 4, 2)

    world = play(build, usable_blocks=3)
    assert schedule(world) == ordered({"a": (4, 0), "b": (4, 0)}, {"a": (1, 4)}, {"b": (5, 0)})
    assert world.victims == [[], ["b"], []]


def test_several_victims_for_one_request() -> None:
    def build(world: World) -> None:
        world.ask("a", 16, 1)
        world.ask("b", 4, 2)
        world.ask("c", 4, 2)

    # The second chunk of a wants 2 blocks: those of c and b.
    world = play(build, usable_blocks=4, scheduler_reserve_full_isl=False, long_prefill_token_threshold=8)
    assert schedule(world) == ordered(
        {"a": (8, 0), "b": (4, 0), "c": (4, 0)}, {"a": (8, 8)}, {"b": (5, 0), "c": (5, 0)}
    )
    assert world.victims == [[], ["c", "b"], []]


def test_priority_preempts_the_least_urgent_even_if_it_was_scheduled_in_this_step() -> None:
    def build(world: World) -> None:
        world.ask("a", 3, 6, priority=1)
        world.ask("b", 4, 2, at_ns=MS // 2)
        world.ask("c", 12, 1, at_ns=MS // 2)

    world = play(
        build,
        usable_blocks=4,
        max_num_batched_tokens=6,
        scheduling_policy="priority",
        scheduler_reserve_full_isl=False,
    )
    assert schedule(world)[:3] == ordered(
        {"a": (3, 0)},
        {"a": (1, 3), "b": (4, 0), "c": (1, 0)},
        {"b": (1, 4), "c": (5, 1)},  # a gave its token back: 6 - 1 = 5 for c
    )
    assert world.victims[2] == ["a"]
    a = world.requests["a"]
    assert a.recomputed_tokens == 4 * a.preemptions  # what was undone had not been computed
    assert len(world.tokens_ns["a"]) == 6


def test_priority_breaks_a_tie_in_favour_of_the_later_admitted() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 2)
        world.ask("b", 4, 2)

    world = play(build, usable_blocks=3, scheduling_policy="priority")
    assert schedule(world) == ordered({"a": (4, 0), "b": (4, 0)}, {"b": (1, 4)}, {"a": (5, 0)})
    assert world.victims == [[], ["a"], []]


def test_priority_preempts_the_later_arrival_among_equals() -> None:
    def build(world: World) -> None:
        world.ask("a", 3, 4)
        world.ask("b", 4, 4, at_ns=MS // 2)

    world = play(build, usable_blocks=3, scheduling_policy="priority")
    assert schedule(world)[2] == [("a", (1, 4))]
    assert world.victims[2] == ["b"]


def test_priority_orders_those_waiting_and_the_preempted_among_them() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 3, priority=1)
        world.ask("b", 4, 4, priority=2)
        world.ask("late", 4, 1, at_ns=MS // 2)  # priority 0
        world.ask("later", 4, 1, at_ns=MS // 2, priority=2)

    world = play(build, usable_blocks=3, max_num_seqs=2, scheduling_policy="priority")
    assert world.victims[1] == ["b"]
    assert [list(step) for step in world.steps[:4]] == [["a", "b"], ["a"], ["a", "late"], ["b", "later"]]


def test_priority_never_displaces_a_running_request_by_itself() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 5, priority=5)
        world.ask("b", 4, 1, at_ns=MS // 2)

    world = play(build, max_num_seqs=1, scheduling_policy="priority")
    assert world.requests["b"].scheduled_ns == 5 * MS
    assert world.requests["a"].preemptions == 0


def test_equal_priorities_and_arrivals_wait_by_name_as_text() -> None:
    queue = PriorityQueue()
    for number, name in enumerate(["0_x", "2_x", "10_x"]):
        queue.add(Request(number, 1, 1, ((1, 1),), 0, name=name))
    assert [queue.pop().name for _ in range(3)] == ["0_x", "10_x", "2_x"]


# ---- prefix cache ----


def test_siblings_share_full_blocks_in_the_very_same_step() -> None:
    def build(world: World) -> None:
        for name in "abc":
            world.ask(name, 9, 1, owner=7)

    world = play(build, enable_prefix_caching=True)
    assert schedule(world) == ordered({"a": (9, 0), "b": (1, 8), "c": (1, 8)})
    assert [request.cached_tokens for request in world.requests.values()] == [0, 8, 8]


def test_the_last_block_of_a_prompt_of_whole_blocks_is_computed_again() -> None:
    def build(world: World) -> None:
        world.ask("a", 8, 1, owner=7)
        world.ask("b", 8, 1, owner=7)
        world.ask("c", 8, 1, owner=7, at_ns=10 * MS)  # everything is free and cached

    world = play(build, enable_prefix_caching=True)
    assert schedule(world) == ordered({"a": (8, 0), "b": (4, 4)}, {"c": (4, 4)})


def test_siblings_of_a_chunked_prompt_hit_what_is_there() -> None:
    def build(world: World) -> None:
        world.ask("a", 13, 1, owner=7)
        world.ask("b", 13, 1, owner=7)

    world = play(build, enable_prefix_caching=True, max_num_batched_tokens=8)
    assert schedule(world) == ordered({"a": (8, 0)}, {"a": (5, 8), "b": (1, 12)})


def test_a_preempted_request_hits_its_own_blocks() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 2)
        world.ask("b", 8, 3)

    # b loses its 2 blocks to a, which takes only the later of them.
    world = play(build, usable_blocks=3, enable_prefix_caching=True)
    assert schedule(world) == ordered({"a": (4, 0), "b": (8, 0)}, {"a": (1, 4)}, {"b": (5, 4)}, {"b": (1, 9)})
    b = world.requests["b"]
    assert (b.preemptions, b.computed_tokens, b.recomputed_tokens, b.cached_tokens) == (1, 14, 4, 0)


def test_cached_blocks_that_lie_free_count_as_needed() -> None:
    def build(world: World) -> None:
        world.ask("a", 8, 1, owner=7)
        world.ask("b", 8, 5, at_ns=2 * MS)  # leaves 1 of 4 blocks
        world.ask("c", 9, 1, owner=7, at_ns=3 * MS + 1)  # hits 2 free ones and needs a third

    world = play(build, usable_blocks=4, enable_prefix_caching=True)
    assert world.requests["c"].scheduled_ns == world.requests["b"].finish_ns


# ---- ends ----


def test_max_model_len_ends_a_request() -> None:
    def build(world: World) -> None:
        world.ask("a", 6, 100)

    for async_scheduling in (False, True):
        world = play(build, max_model_len=10, async_scheduling=async_scheduling)
        a = world.requests["a"]
        assert (a.num_output_tokens, a.finish_reason, a.overshoot_tokens) == (4, "length", 0)
        assert len(world.steps) == 4  # the last token is never computed, and no step is wasted


def test_a_score_ends_with_its_prompt() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 3)
        world.ask("score", 10, 1, max_tokens=0)

    for async_scheduling in (False, True):
        world = play(build, max_num_batched_tokens=8, async_scheduling=async_scheduling)
        assert schedule(world) == ordered({"a": (4, 0), "score": (4, 0)}, {"a": (1, 4), "score": (6, 4)}, {"a": (1, 5)})
        score = world.requests["score"]
        assert (score.finish_ns, score.first_token_ns, score.num_output_tokens) == (2 * MS, -1, 0)
        assert score.computed_tokens == 10


def test_a_score_ends_by_its_cap() -> None:
    def build(world: World) -> None:
        world.ask("score", 10, 1, max_tokens=0)

    for async_scheduling in (False, True):
        score = play(build, async_scheduling=async_scheduling).requests["score"]
        assert (score.finish_reason, score.num_output_tokens) == ("length", 0)


def test_a_request_that_ends_makes_room_in_the_very_next_step() -> None:
    def build(world: World) -> None:
        world.ask("a", 8, 1)
        world.ask("b", 8, 1)

    assert [list(step) for step in play(build, usable_blocks=2).steps] == [["a"], ["b"]]


# ---- asynchronous scheduling ----


def test_an_arrival_waits_for_the_running_step_and_in_async_for_the_queued_one() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 10)
        world.ask("b", 4, 1, at_ns=5 * MS // 2)

    sync, asynchronous = play(build), play(build, async_scheduling=True)
    assert sync.requests["b"].queued_ns == asynchronous.requests["b"].queued_ns == 3 * MS
    assert (sync.requests["b"].scheduled_ns, sync.requests["b"].first_token_ns) == (3 * MS, 4 * MS)
    assert (asynchronous.requests["b"].scheduled_ns, asynchronous.requests["b"].first_token_ns) == (4 * MS, 5 * MS)


def test_an_arrival_at_a_step_end_is_seen_by_the_schedule_that_follows() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 10)
        world.ask("b", 4, 1, at_ns=3 * MS)

    assert play(build).requests["b"].scheduled_ns == 3 * MS


def test_an_unforeseen_stop_costs_an_overshoot_token() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 3, max_tokens=10)

    world = play(build, async_scheduling=True)
    a = world.requests["a"]
    assert len(world.steps) == 4
    assert (a.num_output_tokens, a.finish_ns, a.finish_reason) == (3, 3 * MS, "stop")
    assert (a.overshoot_tokens, a.computed_tokens) == (1, 7)
    assert len(play(build).steps) == 3


def test_a_stop_that_the_cap_foretells_costs_nothing() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 3, max_tokens=3)

    world = play(build, async_scheduling=True)
    assert len(world.steps) == 3
    assert world.requests["a"].overshoot_tokens == 0


def test_blocks_come_free_a_step_later_in_async() -> None:
    def build(world: World) -> None:
        world.ask("a", 8, 1)
        world.ask("b", 8, 1)

    assert play(build, usable_blocks=2, async_scheduling=True).starts_ns == [0, MS]

    def unforeseen(world: World) -> None:
        world.ask("a", 8, 1, max_tokens=9)
        world.ask("b", 8, 1)

    world = play(unforeseen, usable_blocks=3, async_scheduling=True)
    # a's stop is learnt of at 1 ms, while its overshoot step is queued already.
    assert world.starts_ns == [0, MS, 2 * MS]
    assert [list(step) for step in world.steps] == [["a"], ["a"], ["b"]]


def test_a_token_in_flight_is_delivered_although_its_request_was_preempted() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 3)
        world.ask("b", 4, 3)

    world = play(build, usable_blocks=3, async_scheduling=True)
    # The second step is planned while the first runs; b, its own victim, still gets the first one's token.
    assert schedule(world) == ordered(
        {"a": (4, 0), "b": (4, 0)}, {"a": (1, 4)}, {"a": (1, 5)}, {"b": (5, 0)}, {"b": (1, 5)}
    )
    assert world.victims[1] == ["b"]
    assert world.tokens_ns["b"] == [MS, 4 * MS, 5 * MS]
    assert world.requests["b"].preemptions == 1


@BOTH_POLICIES
def test_a_request_whose_last_token_is_in_flight_is_skipped_also_when_blocks_run_out(policy: str) -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 2)
        world.ask("b", 7, 4, priority=1)

    world = play(build, usable_blocks=4, async_scheduling=True, scheduling_policy=policy)
    # The third step is planned while a's second and last token is being computed; b finds no third block.
    assert schedule(world)[:3] == ordered({"a": (4, 0), "b": (7, 0)}, {"a": (1, 4), "b": (1, 7)}, {})
    assert world.victims[2] == ["b"]
    assert world.requests["a"].computed_tokens == 5


@BOTH_POLICIES
def test_a_request_at_max_model_len_is_skipped_also_when_blocks_run_out(policy: str) -> None:
    def build(world: World) -> None:
        world.ask("a", 8, 100)
        world.ask("b", 3, 4, priority=1)

    world = play(build, usable_blocks=4, max_model_len=10, async_scheduling=True, scheduling_policy=policy)
    assert schedule(world)[:3] == ordered({"a": (8, 0), "b": (3, 0)}, {"a": (1, 8), "b": (1, 3)}, {})
    assert world.victims[2] == ["b"]
    assert (world.requests["a"].num_output_tokens, world.requests["a"].computed_tokens) == (2, 9)
