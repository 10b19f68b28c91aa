"""Scores of a verifier that is right about two samples of a problem as often as its AUC says."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

from ttsim_des.rng import Streams
from ttsim_des.variates import sample_uniforms, standard_normals
from ttsim_des.workload.outcomes.draws import RIGHT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def separation(auc: float) -> float:
    """How far right answers lie above wrong ones, in standard deviations of the noise, for this AUC."""
    return sqrt(2) * NormalDist().inv_cdf(auc)


def drawn_scores(streams: Streams, first_query: int, answer: NDArray[np.int32], auc: float) -> NDArray[np.float64]:
    """`separation` for right answers plus standard normal noise; shape (queries, samples)."""
    queries, samples = answer.shape
    noise = standard_normals(sample_uniforms(streams, "outcome.score", first_query, queries, samples))
    scores: NDArray[np.float64] = noise + separation(auc) * (answer == RIGHT)
    return scores
