"""Closed forms against the same runs expanded step by step."""

import numpy as np
import pytest
from factory import World, gap, step

from ttsim_des.metrics.gaps import Gaps
from ttsim_des.metrics.runs import StepRuns
from ttsim_des.metrics.stats import describe_ns


def random_world(seed: int) -> World:
    rng = np.random.default_rng(seed)
    world = World()
    for replica in (0, 1):
        time = int(rng.integers(0, 20))
        for _ in range(15):
            n, first, increment = int(rng.integers(1, 9)), int(rng.integers(20, 40)), int(rng.integers(-2, 4))
            host = int(rng.integers(0, 5))
            shape = {"running": int(rng.integers(1, 9)), "decode_seqs": int(rng.integers(1, 5))}
            row = step(
                time, n, first, increment_ns=increment, replica=replica, held_blocks=int(rng.integers(1, 9)), **shape
            )
            world.steps.append(row | {"period_ns": first + host})
            time += (
                n * (first + host) + increment * n * (n - 1) // 2 + int(rng.integers(0, 2)) * int(rng.integers(0, 50))
            )
    return world


def expanded(world: World) -> list[tuple[int, int, int, dict[str, int], int]]:
    """(start, period, duration, row, step index) of every single step."""
    steps = []
    for row in world.steps:
        start = row["start_ns"]
        for j in range(row["steps"]):
            period = row["period_ns"] + j * row["period_increment_ns"]
            steps.append((start, period, row["duration_ns"] + j * row["increment_ns"], row, j))
            start += period
    return steps


@pytest.mark.parametrize("seed", range(5))
def test_steps_against_expansion(seed: int) -> None:
    world = random_world(seed)
    runs = StepRuns.of(world.tables().steps)
    single = expanded(world)
    for until in range(0, max(start + period for start, period, *_ in single) + 30, 37):
        assert runs.started_until(until).sum() == sum(start <= until for start, *_ in single)
        busy = sum(min(duration, until - start) for start, _, duration, *_ in single if start <= until)
        assert runs.device_ns_until(until).sum() == busy
        area = sum(
            (row["held_blocks"] + j * row["decode_seqs"] / 16) * min(period, until - start)
            for start, period, _, row, j in single
            if start <= until
        )
        found = runs.integral_until(until, runs.column("held_blocks"), runs.column("decode_seqs") / 16).sum()
        assert found == pytest.approx(area, rel=1e-12, abs=1e-6)


def test_a_run_lasts_until_the_next_one_at_most() -> None:
    world = World(steps=[step(0, 1, 10) | {"period_ns": 50}, step(20, 1, 10)])
    runs = StepRuns.of(world.tables().steps)
    assert runs.integral_until(1000, runs.column("running")).tolist() == [20.0, 10.0]


def gap_worlds(seed: int) -> list[dict[str, int]]:
    rng = np.random.default_rng(seed)
    return [
        gap(
            int(rng.integers(0, 3000)),
            int(rng.integers(1, 30)),
            int(rng.integers(60, 120)),
            increment_ns=int(rng.integers(-2, 3)),
            seqs=int(rng.integers(1, 40)),
        )
        for _ in range(40)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_gap_distribution_against_expansion(seed: int) -> None:
    rows = gap_worlds(seed)
    single = []
    for row in rows:
        time = row["delivered_ns"]
        for j in range(row["steps"]):
            value = row["gap_ns"] + j * row["increment_ns"]
            time += value if j else 0
            single += [(time, value)] * row["seqs"]
    table = World(gaps=rows).tables().token_gaps
    for start, end in ((None, 10**9), (500, 2500), (2500, 2500), (0, 40)):
        values = np.array([v for t, v in single if (start is None or t > start) and t <= end], dtype=np.int64)
        assert Gaps(table, start, end).describe_ns() == describe_ns(values)


def test_gaps_of_long_runs_are_not_expanded() -> None:
    table = World(gaps=[gap(0, 10**7, 5_000_000, increment_ns=3, seqs=1000)] * 10).tables().token_gaps
    gaps = Gaps(table, None, 10**18)
    assert gaps.count == 10**11
    assert gaps.describe_ns()["p50"] == pytest.approx((5_000_000 + 3 * 5e6) / 1e9, rel=1e-6)
    assert next(gaps.chunks()).total_ns == 10 * 1000 * (10**7 * 5_000_000 + 3 * (10**7 * (10**7 - 1) // 2))
