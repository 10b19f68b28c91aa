"""Accuracy of what can be done with several samples of a problem; shapes are (problems, samples)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ttsim_des.workload.outcomes.draws import RIGHT

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pass_at_1(answer: NDArray[np.int32]) -> float:
    """Share of right samples."""
    return float((answer == RIGHT).mean())


def pass_at_n(answer: NDArray[np.int32]) -> float:
    """Share of problems with a right sample."""
    return float((answer == RIGHT).any(axis=1).mean())


def majority(answer: NDArray[np.int32]) -> float:
    """Share of problems whose most frequent answer is right; ties count in part, samples without answer do not vote."""
    votes = (answer[:, :, None] == answer[:, None, :]).sum(axis=2)  # of each sample's own answer
    votes = np.where(answer >= 0, votes, 0)
    top = votes.max(axis=1, keepdims=True)
    leads = (votes == top) & (top > 0)
    # Each leading answer is named by `votes` samples, so weighing them by 1 / votes counts answers.
    weight = np.where(leads, 1.0 / np.maximum(votes, 1), 0.0)
    right = np.where(answer == RIGHT, weight, 0.0).sum(axis=1)
    return float((right / np.maximum(weight.sum(axis=1), 1e-300)).mean())


def best_of_n(answer: NDArray[np.int32], score: NDArray[np.float64]) -> float:
    """Share of problems whose highest-scored sample is right."""
    best = score.argmax(axis=1)
    return float((answer[np.arange(len(answer)), best] == RIGHT).mean())


def auc(answer: NDArray[np.int32], score: NDArray[np.float64]) -> float | None:
    """P(a right sample scores above a wrong one of the same problem), over all such pairs; None without any."""
    right = answer == RIGHT
    pairs = right[:, :, None] & ~right[:, None, :]
    if not pairs.any():
        return None
    above = (score[:, :, None] > score[:, None, :]) + 0.5 * (score[:, :, None] == score[:, None, :])
    return float(above[pairs].mean())
