"""Candidates simulated one after another, as long as one can still win."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ttsim_des.capacity.candidate import Candidate
from ttsim_des.capacity.idle import Idle
from ttsim_des.capacity.question import Question


def race(
    question: Question,
    candidates: Sequence[Candidate],
    beaten_by: Callable[[Candidate], str],
    arrive: Callable[[Candidate], None],
    *,
    prune: bool,
) -> None:
    """Judge candidates in this order, as many side by side as the executor has workers.

    `arrive` is told of each that was judged, or whose runs are those of another one (`Candidate.runs_like`).
    `beaten_by` says why one need not be simulated any more, or nothing. Without `prune` all are simulated.
    """
    if not prune:
        question.judge(candidates)
        for candidate in candidates:
            arrive(candidate)
        return
    idle = Idle(question, candidates)
    waiting = list(candidates)
    judged: dict[str, list[Candidate]] = {}
    while waiting:
        batch: dict[str, Candidate] = {}
        unknown: list[Candidate] = []
        rest: list[Candidate] = []
        for candidate in waiting:
            is_full = len(batch) + len(unknown) >= question.executor.workers
            if candidate.why_not:
                continue
            if why_not := beaten_by(candidate):
                candidate.why_not = why_not
            elif twin := next((one for one in judged.get(candidate.family, ()) if candidate.runs_like(one)), None):
                candidate.take_runs_of(twin)
                arrive(candidate)
            elif is_full or candidate.family in batch:
                rest.append(candidate)
            elif idle.is_worth_asking(candidate):
                unknown.append(candidate)
                rest.append(candidate)
            else:
                batch[candidate.family] = candidate
        if unknown:
            idle.ask(unknown)
            waiting = [*batch.values(), *rest]
            continue
        waiting = rest
        if batch:
            question.progress(f"{len(waiting)} waiting: {next(iter(batch.values())).label}")
            question.judge(list(batch.values()))
        for family, candidate in batch.items():
            judged.setdefault(family, []).append(candidate)
            arrive(candidate)
