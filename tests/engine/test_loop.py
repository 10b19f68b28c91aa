"""The engine's loop: cancels, host time, idling. Steps take 1 ms."""

from __future__ import annotations

from itertools import pairwise

import pytest
from engine_rig import MS, World, play

from ttsim_des.latency.host import HostOverhead

US = 1_000

# ---- cancels ----


@pytest.mark.parametrize("cancel_ns", [MS, 3 * MS // 2])
def test_a_cancel_acts_when_the_step_in_flight_is_back_and_drops_its_token(cancel_ns: int) -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 5, cancel_ns=cancel_ns)
        world.ask("b", 4, 5)

    world = play(build)
    a = world.requests["a"]
    # At 1 ms it acts between two steps; at 1.5 ms the running step is paid in full and its token is lost.
    steps = 1 if cancel_ns == MS else 2
    assert (a.status.value, a.finish_ns, a.num_output_tokens) == ("cancelled", steps * MS, 1)
    assert [list(step) for step in world.steps] == [["a", "b"]] * steps + [["b"]] * (5 - steps)


def test_async_a_cancel_drops_the_tokens_of_both_steps_in_flight() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 9, cancel_ns=5 * MS // 2)
        world.ask("b", 4, 9)

    world = play(build, async_scheduling=True)
    a = world.requests["a"]
    assert (a.finish_ns, a.num_output_tokens) == (3 * MS, 2)
    assert [len(step) for step in world.steps] == [2, 2, 2, 2, 1, 1, 1, 1, 1]  # the queued step still computes it
    assert a.computed_tokens == 4 + 3


def test_async_blocks_of_a_cancelled_request_are_free_before_its_last_step_has_run() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 9, cancel_ns=3 * MS // 2)
        world.ask("b", 8, 1, at_ns=MS // 2)

    world = play(build, usable_blocks=3, async_scheduling=True)
    assert world.requests["b"].scheduled_ns == 3 * MS  # planned at 2 ms, behind the queued step


def test_a_cancel_after_the_end_has_no_effect() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 2, cancel_ns=2 * MS)

    a = play(build).requests["a"]
    assert (a.status.value, a.num_output_tokens) == ("finished", 2)


def test_a_cancel_while_its_last_step_runs_takes_the_last_token() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 2, cancel_ns=3 * MS // 2)

    a = play(build).requests["a"]
    assert (a.status.value, a.num_output_tokens) == ("cancelled", 1)


def test_a_waiting_request_can_be_cancelled() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 3)
        world.ask("b", 4, 1, at_ns=MS // 4, cancel_ns=3 * MS // 2)
        world.ask("c", 4, 1, at_ns=MS // 2)

    world = play(build, max_num_seqs=1)
    assert [list(step) for step in world.steps] == [["a"], ["a"], ["a"], ["c"]]
    b = world.requests["b"]
    assert (b.status.value, b.scheduled_ns, b.computed_tokens) == ("cancelled", -1, 0)


def test_a_cancel_right_behind_its_request_finds_it() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 3)
        world.ask("b", 4, 3, at_ns=MS // 4, cancel_ns=MS // 4)

    world = play(build)
    assert world.requests["b"].status.value == "cancelled"
    assert [list(step) for step in world.steps] == [["a"]] * 3


def test_a_preempted_request_can_be_cancelled_and_its_token_in_flight_is_dropped() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 4)
        world.ask("b", 4, 4, cancel_ns=MS // 2)

    world = play(build, usable_blocks=3, async_scheduling=True)
    assert world.victims[1] == ["b"]  # the second step is planned at once
    b = world.requests["b"]
    assert (b.status.value, b.finish_ns, b.num_output_tokens) == ("cancelled", MS, 0)


def test_a_prompt_cancelled_half_way_gives_its_blocks_back() -> None:
    def build(world: World) -> None:
        world.ask("a", 16, 1, cancel_ns=MS // 2)
        world.ask("b", 16, 1, at_ns=MS // 2)

    world = play(build, usable_blocks=4, max_num_batched_tokens=8)
    assert world.requests["b"].scheduled_ns == MS


# ---- host time ----


def test_synchronous_scheduling_pays_host_time_between_steps() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 4)
        world.ask("b", 4, 2)

    host = HostOverhead(
        schedule_step_ns=100 * US, schedule_sequence_ns=10 * US, update_step_ns=30 * US, update_sequence_ns=US
    )
    world = play(build, host=host)
    pair_ns, alone_ns = MS + 120 * US + 32 * US, MS + 110 * US + 31 * US
    starts = [120 * US, 120 * US + pair_ns]
    starts += [starts[1] + MS + 32 * US + 110 * US]
    starts += [starts[2] + alone_ns]
    assert world.starts_ns == starts
    assert world.requests["a"].finish_ns == starts[3] + MS


def test_asynchronous_scheduling_hides_host_time_behind_the_device() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 6)

    host = HostOverhead(schedule_step_ns=400 * US, update_step_ns=500 * US)
    world = play(build, host=host, async_scheduling=True)
    assert world.starts_ns == [400 * US + step * MS for step in range(6)]


@pytest.mark.parametrize("tokens", [6, 200])
def test_a_slow_host_sets_the_pace_of_asynchronous_steps(tokens: int) -> None:
    def build(world: World) -> None:
        world.ask("a", 4, tokens)

    host = HostOverhead(schedule_step_ns=900 * US, update_step_ns=600 * US)
    world = play(build, host=host, async_scheduling=True)
    starts = world.starts_ns
    # Step 1 is planned while step 0 runs; from then on a step starts once its predecessor's result is handled (0.6 ms)
    # and it is itself scheduled (0.9 ms).
    assert starts[:2] == [900 * US, 1_900 * US]
    assert {later - earlier for earlier, later in pairwise(starts[1:])} == {1_500 * US}


# ---- idling ----


def test_an_idle_engine_takes_a_request_at_once() -> None:
    def build(world: World) -> None:
        world.ask("a", 4, 1)
        world.ask("b", 4, 1, at_ns=7 * MS + 3)

    for async_scheduling in (False, True):
        world = play(build, async_scheduling=async_scheduling)
        assert world.starts_ns == [0, 7 * MS + 3]


def test_requests_that_arrive_together_start_together_and_in_order_of_their_ids() -> None:
    def build(world: World) -> None:
        for name in "abc":
            world.ask(name, 4, 1, at_ns=5)

    assert [list(step) for step in play(build).steps] == [["a", "b", "c"]]


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("host", [HostOverhead(), HostOverhead(100, 0, 30, 0)], ids=["free host", "host"])
def test_an_input_at_any_instant_is_seen_by_the_first_schedule_not_before_it(
    async_scheduling: bool, host: HostOverhead
) -> None:
    step_ns, until = 1_000, 6_000
    alone = play(lambda world: world.ask("a", 4, 20), host=host, step_ns=step_ns, async_scheduling=async_scheduling)
    # The engine looks at its inputs whenever a step is back and handled.
    looks = [end_ns + host.update_ns(1) for end_ns in alone.ends_ns]
    for instant in {edge for look in looks for edge in (look - 31, look - 30, look - 1, look, look + 1)}:
        if not step_ns < instant < until:
            continue

        def build(world: World, instant: int = instant) -> None:
            world.ask("a", 4, 20)
            world.ask("b", 4, 3, at_ns=instant)

        world = play(build, host=host, step_ns=step_ns, async_scheduling=async_scheduling)
        assert world.requests["b"].queued_ns == min(look for look in looks if look >= instant)
