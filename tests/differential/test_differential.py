"""Leap = step = oracle in random worlds; and that the comparison is able to fail."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import differ
import faults
import oracle
import product
import pytest
import worlds

from ttsim_des.engine import growth_batch

FOUND = Path(__file__).parent / "found"
SEED = 3
WORLDS = 1_000
FAULT_WORLDS = 400

RARE = {
    "preemptions": 1_000,
    "preemptions of oneself": 100,
    "victims scheduled in the same step": 100,
    "resumed with hits": 300,
    "steps that preempt and leave somebody waiting beside": 300,
    "cached blocks evicted": 10_000,
    "duplicate blocks": 1_000,
    "hits on freed blocks": 10_000,
    "refusals although the chunk fits": 1_000,
    "refusals by the watermark alone": 300,
    "chunked prompts": 3_000,
    "inputs at the instant of a step's end": 100,
    "inputs while only decoding": 3_000,
    "cancels at a step's end": 500,
    "cancels between steps": 500,
    "cancels with work queued": 100,
    "cancels of what was still entering": 50,
    "cancels that came too late": 100,
    "cancelled while waiting": 500,
    "finished while waiting": 30,
    "stale tokens delivered": 200,
    "overshoot tokens": 1_000,
    "empty steps": 1_000,
    "ended by max_model_len": 50,
    "steps bound by the host": 1_000,
    "domain edges while only decoding": 100,
    "milestones": 1_000,
    "leaps over as they begin": 1_000,
    "samples admitted alike": 300,
    "strategies woken at once": 3_000,
    "scores": 500,
    "drafts": 30_000,
    "drafts accepted": 10_000,
    "padded admissions": 100,
    "stale drafts": 100,
    "drafts cut by the budget": 60,
    "drafts cut by max_model_len": 100,
    "overshoot of more than a token": 300,
    "runs of more than one step": 3_000,
}
"""How often the things that these worlds are made for must happen in all of them together."""


@functools.cache
def verdicts():
    return [differ.check(worlds.make_world(SEED, index)) for index in range(WORLDS)]


def test_leap_equals_step_equals_oracle():
    wrong = [(index, verdict) for index, verdict in enumerate(verdicts()) if verdict.kind]
    kinds = Counter(verdict.kind for _, verdict in wrong)
    first = f"world {wrong[0][0]} of seed {SEED}: {wrong[0][1].text}" if wrong else ""
    assert not wrong, f"{len(wrong)} of {WORLDS} worlds differ: {dict(kinds)}\n{first}"


@pytest.mark.parametrize("path", sorted(FOUND.glob("*.json")), ids=lambda path: path.stem)
def test_world_that_once_differed(path):
    """Worlds that found something, made small by hand or by `shrink`."""
    assert differ.check(json.loads(path.read_text())).text == ""


@pytest.mark.parametrize("room", [1, 2])
def test_books_of_drafts_without_room_to_spare(monkeypatch, room):
    """The arrays by step move on all the time, and end where the last known course ends."""
    monkeypatch.setattr(growth_batch, "_FIRST_STEPS", 1)
    monkeypatch.setattr(growth_batch, "_ROOM", room)
    asked = [worlds.make_world(SEED, index) for index in range(WORLDS)]
    drafting = [world for world in asked if world["engine"].get("speculation")][:200]
    assert len(drafting) == 200
    assert {differ.check(world).text for world in drafting} == {""}


def test_rare_things_happened():
    counts = Counter()
    for verdict in verdicts():
        counts.update(verdict.counts)
    print("\n".join(f"{name}: {count}" for name, count in sorted(counts.items())))  # noqa: T201
    assert {name: counts[name] for name, least in RARE.items() if counts[name] < least} == {}
    assert counts["worlds without an end"] <= WORLDS // 100
    assert counts["SimPy events, leap"] < 0.8 * counts["SimPy events, step"]


def caught(check):
    """The first world in which a fault shows."""
    for index in range(FAULT_WORLDS):
        world = worlds.make_world(SEED, index)
        if not verdicts()[index].kind and check(world).kind:
            return index
    return None


@pytest.mark.parametrize("name", faults.CODE_FAULTS)
def test_fault_is_caught(name):
    verdicts()  # without the fault
    with faults.planted(name):
        assert caught(differ.check) is not None


@pytest.mark.parametrize("name", faults.MODEL_FAULTS)
def test_fault_of_a_step_model_is_caught(name):
    def check(world):
        model = faults.WrongRuns(worlds.step_model(world), faults.MODEL_FAULTS[name])
        return differ.check(world, model=model)

    assert caught(check) is not None


@pytest.mark.parametrize("name", faults.HARMLESS)
def test_where_a_leap_is_cut_does_not_matter(name):
    verdicts()
    with faults.planted(name):
        assert caught(differ.check) is None


def test_records_of_leap_and_step_are_byte_identical():
    for index in range(50):
        world = worlds.make_world(SEED, index)
        leap, step = (product.simulated(world, stepping).tables for stepping in ("leap", "step"))
        assert leap.queries.equals(step.queries)
        assert leap.requests.equals(step.requests)


def test_shrinking_keeps_the_fault_and_makes_the_world_small():
    with faults.planted("LIFO admission"):
        world = next(world for world in map(functools.partial(worlds.make_world, SEED), range(100)) if differs(world))
        small = differ.shrink(world, differ.check(world).kind)
        assert differs(small)
    assert worlds.num_requests(small) < worlds.num_requests(world) or worlds.num_requests(world) <= 2
    assert not differs(small)


def differs(world):
    return bool(differ.check(world).kind)


def test_worlds_are_the_same_every_time_and_can_go_on():
    assert worlds.make_world(SEED, 7) == worlds.make_world(SEED, 7)
    assert all(worlds.num_requests(worlds.make_world(SEED, index)) <= 60 for index in range(200))


def test_oracle_by_hand():
    """One request of 5 tokens prompt and 3 tokens output on a step of 10 ns, arriving at 7 ns."""
    world = worlds.make_world(SEED, 0) | {
        "model": {"kind": "affine", "constant_ns": 10},
        "host": [0, 0, 0, 0, 0],
        "replicas": 1,
        "turnaround_ns": 0,
        "concurrency": None,
        "max_tokens": 3,
        "strategy": [1, None],
        "bundled": None,
        "queries": [{"arrival_ns": 7, "prompt": [[1, 5]], "outputs": [9], "script": None, "answer": None}],
    }
    world["engine"].pop("speculation", None)
    world["engine"] |= {
        "async_scheduling": False,
        "max_num_batched_tokens": 100,
        "num_gpu_blocks": 100,
        "block_size": 2,
    }
    world["engine"] |= {"max_model_len": 100, "max_num_seqs": 4, "long_prefill_token_threshold": 0}
    facts = differ.oracle_run(world).facts()
    assert [row[1:3] for row in facts["steps"]] == [(7, 10), (17, 10), (27, 10)]
    assert facts["gaps"] == [(0, 27, 10, 1, 0), (0, 37, 10, 1, 0)]
    assert facts["queries"][0][1:4] == (7, 17, 37)
    world["engine"]["num_gpu_blocks"] = 3
    with pytest.raises(oracle.Endless):
        differ.oracle_run(world)
