"""Runs of steps and of token gaps in one form, wherever the leaps that they come from were cut.

A *stretch* is a longest sequence of steps of one replica that only decode, preempt nobody and are described alike; any
other step is a stretch of its own. Within it, from its start on, each run is the longest whose starts and durations are
both linear in the step index. So a run depends on the steps alone: stepping and leaping leave the same bytes. Of a
stretch only its first step's KV blocks are recorded. Drafts may change within a stretch, not within a run.

Gaps: deliveries of one gap each, of equally many tokens to equally many sequences and right behind each other, are
runs where three or more of them grow evenly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ttsim_des.records.store import IntMatrix
from ttsim_des.records.tables import GAP_COLUMNS, STEP_COLUMNS

_TIMES = 6
"""The first columns of a line of steps: start, steps, period and its increment, duration and its increment."""
_DRAFTS = STEP_COLUMNS.index("draft_tokens")
_ALIKE = [
    STEP_COLUMNS.index(name)
    for name in STEP_COLUMNS[_TIMES:]
    if name not in ("held_blocks", "cached_blocks", "draft_tokens")
]
_APART = [STEP_COLUMNS.index(name) for name in ("prefill_seqs", "preempted")]
_BLOCKS = [STEP_COLUMNS.index(name) for name in ("held_blocks", "cached_blocks")]
_DELIVERED, _STEPS, _GAP, _INCREMENT, _SEQS, _EXTRA = range(len(GAP_COLUMNS))


def canonical_steps(lines: IntMatrix) -> tuple[IntMatrix, IntMatrix]:
    """Lines of steps of one replica in canonical form, and apart from them those of the last stretch, not ended yet."""
    rows = lines.shape[1]
    if not rows:
        return lines, lines
    differs = (lines[_ALIKE, 1:] != lines[_ALIKE, :-1]).any(axis=0) | lines[_APART, 1:].any(axis=0)
    firsts = np.flatnonzero(np.concatenate(([True], differs)))
    sizes = np.diff(np.append(firsts, rows))
    lines[_BLOCKS] = np.repeat(lines[np.ix_(_BLOCKS, firsts)], sizes, axis=1)
    last = int(firsts[-1])
    differs |= lines[_DRAFTS, 1:] != lines[_DRAFTS, :-1]
    firsts = np.flatnonzero(np.concatenate(([True], differs)))
    sizes = np.diff(np.append(firsts, rows))
    kept = np.ones(rows, dtype=np.bool_)
    long = np.flatnonzero(sizes > 1)
    for first, size in zip(firsts[long].tolist(), sizes[long].tolist(), strict=True):
        piece = lines[:_TIMES, first : first + size]
        if size > 2 and _paired(piece):
            kept[first + 1 : first + size : 2] = False
            continue
        runs = _linear_runs(piece.T.tolist())
        lines[:_TIMES, first : first + len(runs)] = np.array(runs, dtype=np.int64).T
        kept[first + len(runs) : first + size] = False
    # The period of a run of one step is its duration; that of two steps changes as the duration does.
    single, double = lines[1] == 1, lines[1] == 2
    lines[2] = np.where(single, lines[4], lines[2])
    lines[5] = np.where(single, 0, lines[5])
    lines[3] = np.where(single | double, lines[5], lines[3])
    return _take(lines, kept, 0, last), _take(lines, kept, last, rows)


def _take(lines: IntMatrix, kept: NDArray[np.bool_], start: int, stop: int) -> IntMatrix:
    return np.ascontiguousarray(lines[:, start:stop][:, kept[start:stop]])


def _paired(lines: IntMatrix) -> bool:
    """Take single steps two by two, from the first on, if no three of them lie on a line, as with drafts.

    The starts of any three do: a period may grow.
    """
    start, steps, period, growth, duration, increment = lines
    change = duration[1:] - duration[:-1]
    if not (np.logical_and.reduce(change[1:] != change[:-1]) and np.logical_and.reduce(steps == 1)):
        return False
    pairs = lines.shape[1] // 2 * 2
    steps[0:pairs:2] = 2
    np.subtract(start[1:pairs:2], start[0:pairs:2], out=period[0:pairs:2])
    growth[0:pairs:2] = 0
    increment[0:pairs:2] = change[::2]
    return True


def _linear_runs(lines: list[list[int]]) -> list[list[int]]:
    """The longest linear runs, from the first step on, of steps given as lines of runs that follow each other."""
    runs: list[list[int]] = []
    for line in lines:
        left = list(line)
        while left[1]:
            if not runs or not _absorb(runs[-1], left[0], left[4]):
                runs.append(left)
                break
            start, steps, period, growth, duration, increment = left
            left = [start + period, steps - 1, period + growth, growth, duration + increment, increment]
            if left[1] and runs[-1][1] > 2 and _goes_on(runs[-1], *left):
                runs[-1][1] += left[1]
                break
    return runs


def _absorb(run: list[int], start: int, duration: int) -> bool:
    """Add one step to a run if it lies on its line."""
    first, steps, period, growth, first_duration, increment = run
    last = steps - 1
    passed = start - (first + last * period + growth * (last * (last - 1) // 2))
    if steps == 1:
        run[1:] = [2, passed, 0, first_duration, duration - first_duration]
        return True
    if duration != first_duration + steps * increment:
        return False
    if steps == 2:
        run[1], run[3] = 3, passed - period
        return True
    if passed != period + last * growth:
        return False
    run[1] += 1
    return True


def _goes_on(run: list[int], start: int, steps: int, period: int, growth: int, duration: int, increment: int) -> bool:
    """Whether the rest of a line of steps lies on a run whose line is known."""
    first, count, run_period, run_growth, run_duration, run_increment = run
    if start != first + count * run_period + run_growth * (count * (count - 1) // 2):
        return False
    if duration != run_duration + count * run_increment:
        return False
    if steps == 1:
        return True
    same_period = period == run_period + count * run_growth
    return same_period and increment == run_increment and (growth == run_growth or steps == 2)


def canonical_gaps(lines: IntMatrix) -> tuple[IntMatrix, IntMatrix]:
    """Lines of gaps of one replica in canonical form, and apart from them those that may still go on.

    Lines come in order of delivery. Those of one delivery are sorted by gap, equal gaps are one line.
    """
    if not lines.shape[1]:
        return lines, lines
    lines = _one_line_a_gap(lines)
    delivered = lines[_DELIVERED]
    joint = np.zeros(lines.shape[1], dtype=np.bool_)
    joint[1:] = delivered[1:] == delivered[:-1]
    joint[:-1] |= joint[1:]
    ends = _points(lines, lines[_STEPS] - 1)
    # A stretch goes on where the next line's first delivery lies its gap behind this line's last, with as many tokens.
    goes_on = (lines[_SEQS, 1:] == lines[_SEQS, :-1]) & (delivered[1:] - lines[_GAP, 1:] == ends[:-1])
    goes_on &= lines[_EXTRA, 1:] == lines[_EXTRA, :-1]
    goes_on &= ~(joint[1:] | joint[:-1])
    lines = _linear_gaps(lines, np.append(goes_on, False))
    last = lines.shape[1] - 1
    delivered, ends = lines[_DELIVERED], _points(lines, lines[_STEPS] - 1)
    while last and (delivered[last - 1] == delivered[last] or delivered[last] - lines[_GAP, last] == ends[last - 1]):
        differs = (lines[[_SEQS, _EXTRA], last - 1] != lines[[_SEQS, _EXTRA], last]).any()
        if differs and delivered[last - 1] != delivered[last]:
            break
        last -= 1  # more of this delivery may come, or the line may go on
    return np.ascontiguousarray(lines[:, :last]), np.ascontiguousarray(lines[:, last:])


def _points(lines: IntMatrix, j: NDArray[np.int64]) -> NDArray[np.int64]:
    """When delivery j of each line happens."""
    growth = lines[_INCREMENT]
    times: NDArray[np.int64] = lines[_DELIVERED] + j * (lines[_GAP] + growth) + growth * (j * (j - 1) // 2)
    return times


def _one_line_a_gap(lines: IntMatrix) -> IntMatrix:
    delivered, gap = lines[_DELIVERED], lines[_GAP]
    if not (delivered[1:] == delivered[:-1]).any():
        return lines
    lines = lines[:, np.lexsort((gap, delivered))]
    new = np.ones(lines.shape[1], dtype=np.bool_)
    new[1:] = (lines[[_DELIVERED, _GAP], 1:] != lines[[_DELIVERED, _GAP], :-1]).any(axis=0)
    firsts = np.flatnonzero(new)
    sums = np.add.reduceat(lines[[_SEQS, _EXTRA]], firsts, axis=1)
    lines = np.ascontiguousarray(lines[:, firsts])
    lines[[_SEQS, _EXTRA]] = sums
    return lines


def _linear_gaps(lines: IntMatrix, goes_on: NDArray[np.bool_]) -> IntMatrix:
    """Lines of gaps cut anew. `goes_on`: whether a line's successor continues its stretch.

    In the row of all deliveries, three or more whose gaps grow evenly are a run; one that could belong to two runs
    belongs to the first; all others are lines of their own.
    """
    rows, counts = lines.shape[1], lines[_STEPS]
    first = np.cumsum(counts) - counts  # the number of each line's first delivery among all
    # How the gap changes from each delivery to the next: within the lines, then from line to line, in order.
    junction = np.zeros(rows, dtype=np.int64)
    junction[:-1] = lines[_GAP, 1:] - (lines[_GAP] + (counts - 1) * lines[_INCREMENT])[:-1]
    change = np.stack((lines[_INCREMENT], junction), axis=1).ravel()
    length = np.stack((counts - 1, goes_on.astype(np.int64)), axis=1).ravel()
    place = np.stack((first, first + counts - 1), axis=1).ravel()
    stretch = np.repeat(np.cumsum(np.concatenate(([0], ~goes_on[:-1]))), 2)
    there = np.flatnonzero(length)
    change, length, place, stretch = change[there], length[there], place[there], stretch[there]
    begins = np.ones(there.size, dtype=np.bool_)
    begins[1:] = (change[1:] != change[:-1]) | (stretch[1:] != stretch[:-1])
    starts = np.flatnonzero(begins)
    lengths = np.add.reduceat(length, starts) if starts.size else length
    runs = lengths >= 2
    starts, lengths = starts[runs], lengths[runs]
    run_first, run_change, run_count = place[starts], change[starts], lengths + 1
    shared = np.zeros(starts.size, dtype=np.int64)
    shared[1:] = run_first[1:] == run_first[:-1] + lengths[:-1]
    run_first, run_count = run_first + shared, run_count - shared
    # What no run has taken: the deliveries between one run's end and the next one's start.
    total = int(counts.sum())
    free_from = np.concatenate(([0], run_first + run_count))
    free_count = np.concatenate((run_first, [total])) - free_from
    singles = np.repeat(free_from - (np.cumsum(free_count) - free_count), free_count) + np.arange(free_count.sum())
    at = np.concatenate((run_first, singles))
    order = np.argsort(at, kind="stable")
    row = np.searchsorted(first, at, side="right") - 1
    within = at - first[row]
    picked = lines[:, row]
    result = np.stack(
        (
            _points(picked, within),
            np.concatenate((run_count, np.ones_like(singles))),
            picked[_GAP] + within * picked[_INCREMENT],
            np.concatenate((run_change, np.zeros_like(singles))),
            picked[_SEQS],
            picked[_EXTRA],
        )
    )
    return np.ascontiguousarray(result[:, order])
