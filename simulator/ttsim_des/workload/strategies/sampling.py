"""Strategies that sample whole chains: one, several at once, or in waves."""

from __future__ import annotations

from collections.abc import Generator

from ttsim_des.workload.handle import Process, Query, Sample, Wait
from ttsim_des.workload.strategies.votes import best_scored, is_decided, majority

DECIDED = 0.95
"""Adaptive consistency stops when the vote is decided with this probability, unless told otherwise."""


def single(query: Query) -> Process:
    """One sample; its end is the answer."""
    sample = query.spawn()
    yield query.join([sample])
    return sample


def best_of_n(query: Query) -> Process:
    """N samples at once; of all of them, or of the first `first` to finish, the best-scored one.

    Those still running then are cancelled. With `verifier`, that pool reads what was finished: everything together,
    or each sample as it ends (`score_when = "each"`). Without outcomes it is left open which one is chosen (None).
    """
    asked = query.strategy
    samples = [query.spawn() for _ in range(asked.samples)]
    needed = asked.first or asked.samples
    if asked.verifier is not None and asked.score_when == "each":
        finished = yield from _scored_one_by_one(query, samples, needed, asked.verifier)
    else:
        finished = yield query.join(samples, needed)
        query.cancel(samples)
        if asked.verifier is not None:
            yield query.join([query.score(sample, asked.verifier, asked.score_tokens or 0) for sample in finished])
    if len(finished) == 1:
        return finished[0]
    return best_scored(finished) if finished[0].verdict is not None else None


def _scored_one_by_one(
    query: Query, samples: list[Sample], needed: int, verifier: str
) -> Generator[Wait, list[Sample], list[Sample]]:
    """Score each sample when it ends, until `needed` of them are scored; returns those."""
    finished: list[Sample] = []
    scores: list[Sample] = []
    while len(finished) < needed:
        ended = yield query.join([sample for sample in samples if sample not in finished], 1)
        for sample in ended[: needed - len(finished)]:
            finished.append(sample)
            scores.append(query.score(sample, verifier, query.strategy.score_tokens or 0))
    query.cancel(samples)
    yield query.join(scores)
    return finished


def self_consistency(query: Query) -> Process:
    """N samples at once; when all have finished, the majority's answer."""
    finished = yield query.join([query.spawn() for _ in range(query.strategy.samples)])
    return majority(finished)


def adaptive_consistency(query: Query) -> Process:
    """Waves of samples until the vote is decided or `samples` are spent; the rest of a wave is cancelled.

    The vote is looked at whenever a sample ends.
    """
    asked, finished = query.strategy, list[Sample]()
    threshold = DECIDED if asked.threshold is None else asked.threshold
    spawned = 0
    while spawned < asked.samples:
        wave = [query.spawn() for _ in range(min(asked.wave or 1, asked.samples - spawned))]
        spawned += len(wave)
        running = wave
        while running:
            finished += yield query.join(running, 1)
            if is_decided(finished, threshold):
                query.cancel(running)
                return majority(finished)
            running = [sample for sample in running if sample not in finished]
    return majority(finished)


def first_finish(query: Query) -> Process:
    """N samples at once; when the first `first` (1 by default) have finished, their majority; the rest is cancelled."""
    samples = [query.spawn() for _ in range(query.strategy.samples)]
    finished = yield query.join(samples, query.strategy.first or 1)
    query.cancel(samples)
    return finished[0] if len(finished) == 1 else majority(finished)
