"""Test-time-scaling policies: who is spawned, who is waited for, who is cancelled, what the answer is.

Each is a short process over `Query`: docs/strategies.md has its formulas.
"""

from __future__ import annotations

from collections.abc import Generator

from ttsim_des.workload.handle import Query, Sample, Strategy, Wait


def single(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
    """One sample; its end is the answer."""
    sample = query.spawn()
    yield query.join([sample])
    return sample


def best_of_n(query: Query) -> Generator[Wait, list[Sample], Sample | None]:
    """N samples at once; answered when all of them, or the first `strategy.first`, have finished.

    Those still running then are cancelled. Which of several finished samples is chosen does not change any time, so
    it is left open (None).
    """
    samples = [query.spawn() for _ in range(query.strategy.samples)]
    finished = yield query.join(samples, query.strategy.first)
    query.cancel(samples)
    return finished[0] if len(finished) == 1 else None


STRATEGIES: dict[str, Strategy] = {"single": single, "best_of_n": best_of_n}
