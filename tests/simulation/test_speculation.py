"""Whole simulations with drafts, by hand: what no luck and perfect luck give, and what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sim_rig import MS, Seen, world

from ttsim_des.engine.speculation import RunDrafting, SpeculationConfig

FLAT = {"constant_ns": MS}
"""Steps cost the same whatever they verify: as if only accepted tokens took time."""


class Luck:
    """Every draft is right, or every draft is wrong."""

    def __init__(self, is_right: bool) -> None:
        self._is_right = is_right

    def drafting(self, _streams: object, _query: int, _sample: int, tokens: int) -> RunDrafting:
        end = tokens + 64
        return RunDrafting(np.array([end] if self._is_right else [*range(end), end]), 64)


def drafted(is_right: bool, outputs: list[int], drafts: int = 3, **more: Any) -> Seen:
    speculation = SpeculationConfig(drafts, drafts)
    return world(
        [8] * len(outputs), [[tokens] for tokens in outputs], latency=FLAT, speculation=speculation,
        acceptance=Luck(is_right), **more
    )  # fmt: skip


@pytest.mark.parametrize("is_async", [False, True])
def test_without_luck_tokens_come_as_without_drafts(is_async: bool) -> None:
    outputs = [5, 17, 40]
    with_drafts = drafted(False, outputs, async_scheduling=is_async)
    plain = world([8] * 3, [[tokens] for tokens in outputs], latency=FLAT, async_scheduling=is_async)
    for name in ("first_token_ns", "finish_ns", "output_tokens"):
        assert with_drafts.column(name) == plain.column(name)
    assert with_drafts.tables.token_gaps.equals(plain.tables.token_gaps)
    rejected, steps = with_drafts.column("rejected_tokens"), with_drafts.column("draft_steps")
    assert rejected == [3 * count for count in steps]
    assert steps == [tokens - 1 for tokens in outputs]  # every step but the one that ends the prefill


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("tokens", "drafts", "steps"), [(9, 3, 3), (10, 3, 4), (1, 3, 1), (2, 1, 2), (40, 5, 8)])
def test_with_all_luck_a_step_brings_all_drafts_and_one(is_async: bool, tokens: int, drafts: int, steps: int) -> None:
    """The first step brings one token, the last what is missing."""
    assert steps == 1 + -(-(tokens - 1) // (drafts + 1))
    seen = drafted(True, [tokens], drafts, async_scheduling=is_async)
    assert seen.column("finish_ns") == [steps * MS]
    assert seen.column("output_tokens") == [tokens]
    assert seen.column("accepted_tokens") == [drafts * (steps - 1)]
    extra = seen.tables.token_gaps.column("extra_tokens").to_pylist()
    times = seen.tables.token_gaps.column("steps").to_pylist()
    assert sum(each * count for each, count in zip(extra, times, strict=True)) == tokens - 1 - (steps - 1)


def test_tokens_beyond_a_stop_are_overshoot() -> None:
    """Ten tokens in steps of one and four: the last step computes two accepted drafts too many."""
    seen = drafted(True, [10], 3)
    assert seen.column("overshoot_tokens") == [3]
    assert seen.column("computed_tokens") == [8 + 3 * 4]
    late = drafted(True, [10], 3, async_scheduling=True)
    assert late.column("overshoot_tokens") == [3 + 4]  # and the step that was planned before anybody knew


def test_a_batch_of_requests_is_the_sum_of_its_parts() -> None:
    """Tokens of every step: one of each sequence and its drafts."""
    seen = drafted(True, [9, 17])
    steps = seen.tables.steps
    assert steps.column("decode_seqs").to_pylist() == [0, 2, 1]
    assert steps.column("draft_tokens").to_pylist() == [0, 6, 3]
    assert steps.column("steps").to_pylist() == [1, 2, 2]
    assert seen.tables.drafts.select(["position", "drafted", "accepted"]).to_pylist() == [
        {"position": place, "drafted": 6, "accepted": 6} for place in (1, 2, 3)
    ]


def test_drafts_stop_above_a_batch_size() -> None:
    """Three drafts for one sequence, none for two: the longer request drafts once it is alone."""
    speculation = SpeculationConfig(3, 3, 0, ((1, 3), (64, 0)))
    seen = world([8, 8], [[5], [13]], latency=FLAT, speculation=speculation, acceptance=Luck(is_right=True))
    # Steps 1 to 5 bring both five tokens; the sixth is still without drafts, then four at a time: 6, 10, 14.
    assert seen.column("finish_ns") == [5 * MS, 8 * MS]
    assert seen.column("draft_steps") == [0, 2]


def test_a_draft_may_be_what_does_not_fit() -> None:
    """A budget of six tokens: one sequence with three drafts, the other with what is left."""
    speculation = SpeculationConfig(3, 3, 0)
    seen = world(
        [2, 2], [[9], [9]], latency=FLAT, speculation=speculation, acceptance=Luck(is_right=True),
        max_num_batched_tokens=6,
    )  # fmt: skip
    assert seen.column("draft_tokens")[0] > seen.column("draft_tokens")[1]
    assert seen.column("finish_ns")[0] < seen.column("finish_ns")[1]


def test_preempted_drafts_are_lost_and_luck_is_not() -> None:
    """A cache for one and a half requests: the second is preempted, and then accepts what it would have accepted."""
    roomy = drafted(True, [30, 30])
    tight = drafted(True, [30, 30], usable_blocks=16)
    assert max(tight.column("preemptions")) > 0
    assert tight.column("output_tokens") == roomy.column("output_tokens")
    assert max(tight.column("finish_ns")) > max(roomy.column("finish_ns"))
