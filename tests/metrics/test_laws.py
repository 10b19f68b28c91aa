"""Every law holds in a sound world and notices when it is broken."""

from collections.abc import Callable

import pytest
from factory import S, World, context, one_at_a_time, request, step

from ttsim_des.metrics.laws import check_laws


def sound() -> World:
    world = one_at_a_time([0, 1, 20, 30], [5, 3, 1, 2])
    world.steps[0] |= {"waiting": 1}  # the second query is noticed while the first one runs
    world.requests[1]["queued_ns"] = 0
    world.requests[1]["arrival_ns"] = world.queries[1]["arrival_ns"] = 0
    world.steps[1] |= {"waiting": 1}
    return world


def test_a_sound_world_breaks_no_law() -> None:
    assert check_laws(sound().tables(), context()) == []
    assert check_laws(World().tables(), context()) == []


def break_row(rows: str, index: int, **changes: object) -> Callable[[World], None]:
    def change(world: World) -> None:
        getattr(world, rows)[index].update(changes)

    return change


BREAKS: dict[str, tuple[str, Callable[[World], None]]] = {
    "status": ("status is one of", break_row("requests", 0, status="lost")),
    "orphan": ("belongs to a query", break_row("requests", 0, query_id=77)),
    "lost request": ("are in the request table", break_row("queries", 0, requests=2)),
    "query tokens": ("output tokens are its requests'", break_row("queries", 0, output_tokens=9)),
    "stamps": ("first_token_ns is not before", break_row("requests", 3, scheduled_ns=32 * S + 1)),
    "end": ("not after the end", lambda world: setattr(world, "end_ns", 5 * S)),
    "no finish": ("has a finish exactly", break_row("requests", 0, finish_ns=-1)),
    "query first token": ("its requests' first", break_row("queries", 0, first_token_ns=S)),
    "too early": ("before its query", break_row("queries", 3, arrival_ns=31 * S)),
    "cap": ("within max_tokens", break_row("requests", 0, max_tokens=4)),
    "all cached": ("less than the prompt", break_row("requests", 0, cached_tokens=32, computed_tokens=4)),
    "computed": ("computed tokens = prompt", break_row("requests", 0, computed_tokens=35)),
    "recomputed": ("only preempted requests", break_row("requests", 0, recomputed_tokens=1, computed_tokens=37)),
    "overshoot": ("overshoots", break_row("requests", 0, overshoot_tokens=1, computed_tokens=37)),
    "overlap of runs": ("runs of one replica do not overlap", break_row("steps", 0, duration_ns=2 * S + 1)),
    "overlap in a run": ("steps of one run", break_row("steps", 1, period_ns=S - 1)),
    "no time": ("take time", break_row("steps", 0, duration_ns=0)),
    "seats": ("max_num_seqs", break_row("steps", 0, running=300)),
    "not running": ("are running", break_row("steps", 0, prefill_seqs=2)),
    "budget": ("max_num_batched_tokens", break_row("steps", 0, prefill_tokens=9000)),
    "blocks": ("fit the pool", break_row("steps", 0, held_blocks=6, cached_blocks=5)),
    "no blocks": ("hold blocks", break_row("steps", 0, held_blocks=0)),
    "empty step": ("at least one sequence", break_row("steps", 1, decode_seqs=0)),
    "work done": ("tokens computed by the steps", break_row("steps", 0, prefill_tokens=31)),
    "gaps": ("deliveries bring", break_row("gaps", 0, steps=3)),
    "little": ("Little's law", break_row("steps", 0, waiting=0)),
    "after the end": ("start before the end", lambda world: world.steps.append(step(40 * S, 1, S))),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_law_is_named(name: str) -> None:
    text, break_it = BREAKS[name]
    world = sound()
    break_it(world)
    found = check_laws(world.tables(), context())
    assert any(text in line for line in found), found


def test_idling_beside_work_is_named() -> None:
    world = sound()
    world.requests[3]["queued_ns"] = world.requests[3]["arrival_ns"] = world.queries[3]["arrival_ns"] = 9 * S
    found = check_laws(world.tables(), context())
    assert any("idles while a request" in line for line in found)
    assert check_laws(world.tables(), context(host_gap_bound_ns=None)) == []
    assert check_laws(world.tables(), context(), full=False) == []


def test_an_overshoot_is_allowed_under_asynchronous_scheduling() -> None:
    world = sound()
    world.requests[0].update(overshoot_tokens=1, computed_tokens=37)
    assert check_laws(world.tables(), context(async_scheduling=True), full=False) == []
    world.requests[0].update(finish_reason="length")
    assert check_laws(world.tables(), context(async_scheduling=True), full=False) != []


def test_preempted_requests_count_what_they_compute_twice() -> None:
    row = request(0, 0, 0, S, 2 * S, recomputed_tokens=20, preemptions=1)
    world = sound()
    world.requests[0].update(recomputed_tokens=20, preemptions=1, computed_tokens=row["computed_tokens"])
    assert check_laws(world.tables(), context(), full=False) == []
