"""Adaptive consistency against exact enumeration of all orders in which right and wrong samples can come."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from world import column, run_world, scenario

from ttsim_des.workload.strategies.votes import beats

RIGHT, WRONG = 600, 400
SAMPLES, THRESHOLD, QUERIES = 8, 0.9, 3000


def chance(order: tuple[bool, ...]) -> float:
    """Of drawing these, without replacement."""
    left, p = [WRONG, RIGHT], 1.0
    for is_right in order:
        p *= left[is_right] / sum(left)
        left[is_right] -= 1
    return p


def played(order: tuple[bool, ...], wave: int) -> tuple[int, float]:
    """Samples that are asked for, and whether the vote is right (ties go to the first answer), for one order."""
    for end in range(1, SAMPLES + 1):
        right = sum(order[:end])
        wrong = end - right
        is_last = end == SAMPLES
        if beats(max(right, wrong), min(right, wrong)) > THRESHOLD or is_last:
            asked = min(SAMPLES, -(-end // wave) * wave)
            return asked, float(order[0]) if right == wrong else float(right > wrong)
    raise AssertionError


@pytest.mark.parametrize("wave", [1, 3])
def test_adaptive_consistency(tmp_path: Path, wave: int) -> None:
    rows = [f"p,{5},{int(k < RIGHT)},{int(k >= RIGHT)}" for k in range(RIGHT + WRONG)]
    (tmp_path / "bank.csv").write_text("\n".join(["problem,tokens,correct,answer_id", *rows]))
    orders = list(itertools.product((False, True), repeat=SAMPLES))
    weights = np.array([chance(order) for order in orders])
    assert weights.sum() == pytest.approx(1)
    outcomes = np.array([played(order, wave) for order in orders])
    tables = run_world(
        scenario(
            {"process": "poisson", "rate_per_s": 20},
            {"distribution": "outcomes", "source": "bank.csv"},
            QUERIES,
            strategy={"name": "adaptive_consistency", "samples": SAMPLES, "wave": wave, "threshold": THRESHOLD},
            max_tokens=100,
        ),
        tmp_path,
        constant_ns=1e6,
    )
    requests, answers = column(tables.queries, "requests"), column(tables.queries, "answer_id")
    for seen, exact in ((requests, outcomes[:, 0]), (answers == 0, outcomes[:, 1])):
        mean = weights @ exact
        spread = np.sqrt(weights @ (exact - mean) ** 2 / QUERIES)
        assert seen.mean() == pytest.approx(mean, abs=3.5 * spread)
