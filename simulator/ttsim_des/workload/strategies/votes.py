"""Votes over answers, and when they are decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import comb

from ttsim_des.workload.handle import Sample
from ttsim_des.workload.outcomes.draws import NO_ANSWER


def majority(samples: Iterable[Sample]) -> Sample | None:
    """The first sample with the most frequent answer; of equally frequent ones the answer that was given first.

    Samples without an answer do not vote; None when nobody votes.
    """
    voters = [sample for sample in samples if sample.answer != NO_ANSWER]
    counts = Counter(sample.answer for sample in voters)
    if not counts:
        return None
    most = max(counts.values())
    return next(sample for sample in voters if counts[sample.answer] == most)


def best_scored(samples: Iterable[Sample]) -> Sample | None:
    """The sample that the verifier likes best; the first of equals; None when none has an answer."""
    answered = [sample for sample in samples if sample.answer != NO_ANSWER]
    return max(answered, key=lambda sample: (sample.score, -sample.index), default=None)


def is_decided(samples: Iterable[Sample], threshold: float) -> bool:
    """Whether the top answer beats the second with this probability (adaptive consistency, arXiv 2305.11860).

    With a and b votes for them, P(p > 1/2) under Beta(a + 1, b + 1): a sum of binomials.
    """
    counts = Counter(sample.answer for sample in samples if sample.answer != NO_ANSWER).most_common(2)
    if not counts:
        return False
    top = counts[0][1]
    second = counts[1][1] if len(counts) > 1 else 0
    return beats(top, second) > threshold


def beats(top: int, second: int) -> float:
    """P(p > 1/2) when p ~ Beta(top + 1, second + 1): the chance of at least second + 1 heads in top + second + 1."""
    tosses = top + second + 1
    return sum(comb(tosses, heads) for heads in range(second + 1, tosses + 1)) / 2**tosses if top or second else 0.5
