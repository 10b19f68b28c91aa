"""The parametric model that has the moments of a sample bank.

Nine moments for nine parameters, each moment a number that some decision rests on: how long chains are, how much
problems and samples differ, the longest and the shortest of n, how much longer wrong ones are (overall, and within a
problem), and how often one sample, the vote and any sample are right. The model's side is measured on a fixed set of
draws, so that the search is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ttsim_des.rng import Streams
from ttsim_des.workload.outcomes.accuracy import majority, pass_at_1, pass_at_n
from ttsim_des.workload.outcomes.draws import NO_ANSWER, RIGHT
from ttsim_des.workload.outcomes.model import Parameters, Uniforms, chains

PROBLEMS = 6000
_UNCUT = 131_072
"""Where nothing was cut off: the longest context of the models in question."""


class Fitted(NamedTuple):
    """Parameters, and how far their moments are from those of the samples (half the sum of weighted squares)."""

    parameters: Parameters
    misfit: float


class Moments(NamedTuple):
    """What is matched, and reported."""

    mean_tokens: float
    between_sigma: float
    """Standard deviation over problems of the mean log tokens."""
    max_over_mean: float
    min_over_mean: float
    wrong_over_right: float
    """Mean tokens of wrong samples over that of right ones; 1 where there is only one kind."""
    wrong_over_right_within: float
    """The same within a problem: exp of the mean difference of mean log tokens, over problems with both."""
    pass_at_1: float
    pass_at_n: float
    majority: float


def moments(tokens: NDArray[np.int64], answer: NDArray[np.int32]) -> Moments:
    """Of problems (rows) with as many samples each."""
    logs, right = np.log(tokens), answer == RIGHT
    means = tokens.mean(axis=1)
    both = right.any(axis=1) & ~right.all(axis=1)
    within = 1.0
    if both.any():
        counts = right[both].sum(axis=1)
        of_right = np.where(right[both], logs[both], 0).sum(axis=1) / counts
        of_wrong = np.where(right[both], 0, logs[both]).sum(axis=1) / (right.shape[1] - counts)
        within = float(np.exp((of_wrong - of_right).mean()))
    ratio = 1.0 if right.all() or not right.any() else float(tokens[~right].mean() / tokens[right].mean())
    return Moments(
        float(tokens.mean()),
        float(logs.mean(axis=1).std()),
        float((tokens.max(axis=1) / means).mean()),
        float((tokens.min(axis=1) / means).mean()),
        ratio,
        within,
        pass_at_1(answer),
        pass_at_n(answer),
        majority(answer),
    )


def fit(tokens: NDArray[np.int64], answer: NDArray[np.int32], cut: Cut) -> Fitted:
    """The parameters whose draws have the moments of these samples; `cut` from `possible_cuts`."""
    from scipy.optimize import least_squares

    wanted = moments(tokens, answer)
    uniforms = _uniforms(tokens.shape[1])
    # Weights: 1 % of a ratio or half a point of a share are equally bad.
    weights = np.array([100, 20, 100, 100, 50, 5, 200, 200, 200.0])
    logs = np.log(tokens)
    start = np.array(
        [
            logs.mean(),
            logs.mean(axis=1).std(),
            max(0.05, 0.7 * logs.std(axis=1).mean()),
            0.0,
            0.5,
            0.2,
            *_ease(wanted.pass_at_1),
            0.5,
        ]
    )
    low = np.array([0, 0.01, 0.01, -0.8, -0.95, -1.0, -6, 0.05, 0.01])
    high = np.array([15, 3, 2, 0.8, 0.95, 2.0, 6, 12, 0.99])

    def misfit(place: NDArray[np.float64]) -> NDArray[np.float64]:
        got = moments(*chains(_parameters(place.tolist(), cut), uniforms))
        relative = [np.log(got[index] / wanted[index]) for index in range(6)]
        absolute = [got[index] - wanted[index] for index in range(6, 9)]
        misses: NDArray[np.float64] = weights * np.array([*relative, *absolute])
        return misses

    found = least_squares(
        misfit, np.clip(start, low + 1e-3, high - 1e-3), bounds=(low, high), diff_step=0.02, max_nfev=60
    )
    return Fitted(_parameters([round(value, 4) for value in found.x.tolist()], cut), float(found.cost))


def _parameters(place: Sequence[float], cut: Cut) -> Parameters:
    mu, between, within, skew, rho, wrong, ease, spread, repeat = place
    most = _UNCUT if cut.tokens is None else cut.tokens
    return Parameters(mu, between, within, skew, rho, wrong, ease, spread, repeat, most, cut.keeps_answers)


def fresh_draws(parameters: Parameters, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Tokens and answers of other problems than those that the fit looked at."""
    return chains(parameters, _uniforms(samples, seed=1))


def _ease(pass_at_1: float) -> tuple[float, float]:
    """A start: half of the variance of what decides lies between problems."""
    from statistics import NormalDist

    spread = 1.5
    share = min(max(pass_at_1, 0.01), 0.99)
    return NormalDist().inv_cdf(share) * (1 + spread * spread) ** 0.5, spread


def _uniforms(samples: int, seed: int = 0) -> Uniforms:
    streams = Streams(seed)
    problem = streams.uniforms("fit.problem", 0, PROBLEMS, 2)
    per_sample = (streams.uniforms(f"fit.{name}", 0, PROBLEMS, samples) for name in ("length", "right", "answer"))
    return Uniforms(problem[:, 0], problem[:, 1], *per_sample)


class Cut(NamedTuple):
    """Where a source cut its chains off (None: it did not), and whether those chains had answered before."""

    tokens: int | None
    keeps_answers: bool


def possible_cuts(tokens: NDArray[np.int64], answer: NDArray[np.int32]) -> list[Cut]:
    """A cut is where several of the longest chains pile up; where some of those are right, they may have answered."""
    longest = int(tokens.max())
    at_cut = tokens >= longest - 1
    if at_cut.sum() < 2 or at_cut.mean() < 0.001:
        return [Cut(None, keeps_answers=False)]
    cuts = [Cut(longest, keeps_answers=False)]
    if (answer[at_cut] == RIGHT).any():
        cuts.append(Cut(longest, keeps_answers=True))
    return cuts


def without_cut(tokens: NDArray[np.int64], answer: NDArray[np.int32], cut: Cut) -> NDArray[np.int32]:
    """Answers, with those of cut chains removed where they never came."""
    if cut.tokens is None or cut.keeps_answers:
        return answer
    gone = (tokens >= cut.tokens - 1) & (answer != RIGHT)
    return np.where(gone, NO_ANSWER, answer).astype(np.int32)
