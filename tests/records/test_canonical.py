"""Canonical runs: lossless, and the same however the steps or gaps were cut into lines."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsim_des.records.canonical import canonical_gaps, canonical_steps
from ttsim_des.records.store import IntMatrix

Gap = tuple[int, int, int]
"""(delivered, gap, seqs, extra tokens)"""
Step = tuple[int, ...]
"""(start, duration, *the columns that describe it)"""


def random_gaps(random: Random) -> list[list[Gap]]:
    """Deliveries with a few gaps each, many of them on lines."""
    now, pops = 0, []
    for _ in range(random.randint(1, 5)):
        gap, growth, seqs = random.randint(1, 9), random.choice([0, 0, 1, 2]), random.randint(1, 2)
        most_extra = random.choice([0, 0, 1])
        for _ in range(random.randint(1, 6)):
            now += gap
            others = [
                (now, random.randint(1, 9), random.randint(1, 2), random.randint(0, 2))
                for _ in range(random.choice([0, 0, 0, 0, 2]))
            ]
            pops.append([(now, gap, seqs, random.randint(0, most_extra)), *others])
            gap += growth
        now += random.choice([0, 0, 3])
    return pops


def cut_gaps(pops: list[list[Gap]], random: Random) -> list[tuple[int, ...]]:
    """Lines of the token gaps table that say the same, cut at random."""
    lines: list[tuple[int, ...]] = []
    at = 0
    while at < len(pops):
        pop, steps = pops[at], 1
        if len(pop) > 1:
            lines += [(now, 1, gap, 0, seqs, extra) for now, gap, seqs, extra in random.sample(pop, len(pop))]
        else:
            (now, gap, seqs, extra), growth = pop[0], random.randint(0, 3)
            while at + steps < len(pops) and len(pops[at + steps]) == 1 and random.random() < 0.7:
                before, gap_before, *_ = pops[at + steps - 1][0]
                then, next_gap, *next_counts = pops[at + steps][0]
                growth = next_gap - gap_before if steps == 1 else growth
                if next_counts != [seqs, extra] or then - next_gap != before or next_gap - gap_before != growth:
                    break
                steps += 1
            lines.append((now, steps, gap, growth, seqs, extra))
        at += steps
    return lines


def expanded_gaps(lines: np.ndarray) -> list[Gap]:
    found: list[Gap] = []
    for delivered, steps, gap, growth, seqs, extra in lines.T.tolist():
        now = delivered - gap
        for length in range(gap, gap + steps * growth, growth) if growth else [gap] * steps:
            now += length
            found.append((now, length, seqs, extra))
    return summed(found)


def summed(gaps: list[Gap]) -> list[Gap]:
    found: dict[tuple[int, int], list[int]] = {}
    for now, length, seqs, extra in gaps:
        counts = found.setdefault((now, length), [0, 0])
        counts[0] += seqs
        counts[1] += extra
    return sorted((*key, *counts) for key, counts in found.items())


@settings(max_examples=300)
@given(st.integers(0, 10**9))
def test_gaps(seed: int) -> None:
    random = Random(seed)
    pops = random_gaps(random)
    truth = summed([line for pop in pops for line in pop])
    forms = set()
    for _ in range(4):
        lines = packed(cut_gaps(pops, random), 6, canonical_gaps, random, lambda one, other: one[0] == other[0])
        assert expanded_gaps(lines) == truth
        forms.add(lines.tobytes())
    assert len(forms) == 1


def random_steps(random: Random) -> list[Step]:
    now, steps = 0, []
    for _ in range(random.randint(1, 5)):
        duration, growth, host = random.randint(1, 9), random.choice([0, 0, 1, 2, -1]), random.choice([0, 0, 2])
        floor, preempted, prefill = random.choice([0, 0, 7]), random.choice([0, 0, 0, 1]), random.choice([0, 0, 0, 1])
        running = random.randint(1, 2)
        for k in range(random.randint(1, 6)):
            drafts = random.choice([0, 0, 0, 2])
            described = (running, prefill, 3 * prefill, drafts, running, 0, 10 + k + running, k, preempted, 1)
            steps.append((now, duration, *described))
            now += max(duration + host, floor)
            duration = max(1, duration + growth)
        now += random.choice([0, 0, 3])
    return steps


def cut_steps(steps: list[Step], random: Random) -> list[tuple[int, ...]]:
    lines: list[tuple[int, ...]] = []
    at = 0
    while at < len(steps):
        count = 1
        start, duration, *described = steps[at]
        alike = [*described[:6], *described[8:]]
        period, growth, increment = duration, random.randint(0, 2), random.randint(0, 2)
        while at + count < len(steps) and not described[1] and not described[8] and random.random() < 0.7:
            (before, before_ns, *_), (then, then_ns, *others) = steps[at + count - 1], steps[at + count]
            if [*others[:6], *others[8:]] != alike:
                break
            if count == 1:
                period, growth, increment = then - before, 0, then_ns - before_ns
            elif count == 2:
                growth = then - before - period
            if then_ns - before_ns != increment or then - before != period + (count - 1) * growth:
                break
            count += 1
        lines.append((start, count, period, growth, duration, increment, *described))
        at += count
    return lines


def expanded_steps(lines: np.ndarray) -> list[Step]:
    return [
        (start + j * period + growth * (j * (j - 1) // 2), duration + j * increment, *described[:6], *described[8:])
        for start, steps, period, growth, duration, increment, *described in lines.T.tolist()
        for j in range(steps)
    ]


@settings(max_examples=300)
@given(st.integers(0, 10**9))
def test_steps(seed: int) -> None:
    random = Random(seed)
    steps = random_steps(random)
    forms = set()
    for _ in range(4):
        lines = packed(cut_steps(steps, random), 16, canonical_steps, random, lambda one, other: False)
        assert expanded_steps(lines) == [(*step[:8], *step[10:]) for step in steps]
        forms.add(lines.tobytes())
    assert len(forms) == 1


def packed(rows, columns, canonical, random, belong_together) -> np.ndarray:
    """In one go, or in two with the open end of the first carried over."""
    at = random.randint(0, len(rows))
    while 0 < at < len(rows) and belong_together(rows[at - 1], rows[at]):
        at += 1
    closed, still_open = canonical(matrix(rows[:at], columns))
    rest, end = canonical(np.concatenate((still_open, matrix(rows[at:], columns)), axis=1))
    return np.concatenate((closed, rest, end), axis=1)


def test_three_gaps_on_a_line_are_one_run_and_two_are_not() -> None:
    for steps, counts in ((1, [1]), (2, [1, 1]), (3, [3]), (1000, [1000])):
        lines = np.concatenate(canonical_gaps(matrix([(100, steps, 7, 2, 5, 1)], 6)), axis=1)
        assert lines[1].tolist() == counts
        assert expanded_gaps(lines) == expanded_gaps(matrix([(100, steps, 7, 2, 5, 1)], 6))


def matrix(rows: list[tuple[int, ...]], columns: int) -> IntMatrix:
    return np.array(rows, dtype=np.int64).reshape(-1, columns).T.copy()
