"""Acceptance processes fitted to recorded steps by maximum likelihood, and how well each stands for them.

A step with d drafts of which a were accepted tells of a successes and, if a < d, of one failure, in a row. Only that
is used; a step without drafts tells of nothing (but of the drafter's offers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from ttsim_des.speculation.steps import IntArray, RecordedSteps

Floats = NDArray[np.float64]
MOST_KNOTS = 6
"""Places along the output at which the rate is estimated."""
_TINY = 1e-9


class Fit(NamedTuple):
    """One process: its scenario keys, log-likelihood and number of parameters."""

    process: str
    keys: dict[str, float | list[float] | list[int]]
    log_likelihood: float
    parameters: int

    @property
    def aic(self) -> float:
        """Akaike's criterion: smaller is better."""
        return 2 * self.parameters - 2 * self.log_likelihood


class Goodness(NamedTuple):
    """How the recorded steps look, and what the plain iid process would make of them."""

    requests: int
    steps: int
    drafts: int
    accepted: int
    tokens_per_step: float
    by_position: list[float]
    """Share of the steps with a draft there whose draft there was accepted."""
    request_cv: float | None
    """Coefficient of variation of acceptance between requests, what chance explains taken out."""
    lag1: float | None
    """Correlation of accepted counts from step to step of a request."""
    chi2_p: float | None
    """Probability of accepted counts that lie as far from the best process as the recorded ones do."""


def fit_acceptance(recorded: RecordedSteps) -> tuple[list[Fit], Goodness]:
    """Every process that these steps allow, the best by Akaike's criterion first."""
    trials = _Trials.of(recorded)
    fits = [_iid(trials), _positions(trials), _output(trials)]
    if trials.streams > 1:
        fits.append(_beta(trials))
    if (recorded.drafts == 0).any() or _seems_to_copy(trials):
        fits.append(_copying(recorded))
    fits.sort(key=lambda fit: fit.aic)
    return fits, _goodness(recorded, trials, fits[0])


class _Trials(NamedTuple):
    """Single drafts that were judged: stream, place within the step, output position, and whether they were taken."""

    stream: IntArray
    place: IntArray
    position: IntArray
    taken: NDArray[np.bool_]
    streams: int

    @classmethod
    def of(cls, recorded: RecordedSteps) -> _Trials:
        judged = np.minimum(recorded.accepted + 1, recorded.drafts)
        step = np.repeat(np.arange(judged.size), judged)
        place = np.arange(step.size) - np.repeat(np.cumsum(judged) - judged, judged)
        taken = place < recorded.accepted[step]
        return cls(recorded.stream[step], place, recorded.position[step] + place, taken, int(recorded.stream.max()) + 1)


def _bernoulli(taken: int, total: int, rate: float) -> float:
    """Log-likelihood of so many successes."""
    return float(special.xlogy(taken, rate) + special.xlog1py(total - taken, -rate))


def _iid(trials: _Trials) -> Fit:
    taken, total = int(trials.taken.sum()), trials.taken.size
    rate = taken / max(total, 1)
    return Fit("iid", {"rate": rate}, _bernoulli(taken, total, rate), 1)


def _positions(trials: _Trials) -> Fit:
    rates, likelihood = [], 0.0
    for place in range(int(trials.place.max(initial=-1)) + 1):
        here = trials.taken[trials.place == place]
        rates.append(float(here.mean()))
        likelihood += _bernoulli(int(here.sum()), here.size, rates[-1])
    return Fit("positions", {"rates": rates}, likelihood, len(rates))


def _output(trials: _Trials) -> Fit:
    """A rate that runs straight between knots, which hold equally many drafts each."""
    knots = np.unique(np.quantile(trials.position, np.linspace(0, 1, MOST_KNOTS)).astype(np.int64))
    weights = np.maximum(
        0, 1 - np.abs(np.interp(trials.position, knots, np.arange(knots.size))[:, None] - np.arange(knots.size))
    )

    def loss(logits: Floats) -> tuple[float, Floats]:
        rates = special.expit(logits)
        each = np.clip(weights @ rates, _TINY, 1 - _TINY)
        slope = np.where(trials.taken, 1 / each, -1 / (1 - each))
        value = -np.log(np.where(trials.taken, each, 1 - each)).sum()
        return float(value), -(weights.T @ slope) * rates * (1 - rates)

    start = np.full(knots.size, special.logit(np.clip(trials.taken.mean(), 0.01, 0.99)))
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B")
    keys = {"tokens": knots.tolist(), "rates": special.expit(found.x).tolist()}
    return Fit("output", keys, -float(found.fun), knots.size)


def _beta(trials: _Trials) -> Fit:
    """A rate for each request, beta distributed."""
    taken = np.bincount(trials.stream, weights=trials.taken, minlength=trials.streams)
    failed = np.bincount(trials.stream, weights=~trials.taken, minlength=trials.streams)

    def loss(parameters: Floats) -> float:
        mean, concentration = special.expit(parameters[0]), np.exp(parameters[1])
        a, b = mean * concentration, (1 - mean) * concentration
        return -float((special.betaln(a + taken, b + failed) - special.betaln(a, b)).sum())

    mean = np.clip(trials.taken.mean(), 0.01, 0.99)
    found = optimize.minimize(
        loss, [special.logit(mean), np.log(30.0)], method="L-BFGS-B", bounds=[(-9, 9), (np.log(0.1), np.log(1e5))]
    )
    keys: dict[str, float | list[float] | list[int]] = {
        "rate": float(special.expit(found.x[0])),
        "concentration": float(np.exp(found.x[1])),
    }
    return Fit("beta", keys, -float(found.fun), 2)


def _seems_to_copy(trials: _Trials) -> bool:
    """Whether later drafts of a step are taken far more often than the first."""
    first = trials.taken[trials.place == 0]
    later = trials.taken[trials.place > 0]
    return bool(first.size and later.size and later.mean() > first.mean() + 0.15)


def _copying(recorded: RecordedSteps) -> Fit:
    """Runs of copied text, with the offers: whether the last token was copied is not always known.

    Behind a rejected draft and a step without drafts it was not; behind a step that was accepted in full, whose last
    token nobody drafted, it was with `stay`.
    """
    drafts, accepted = recorded.drafts, recorded.accepted
    same = np.append(False, recorded.stream[1:] == recorded.stream[:-1])
    in_full = same & np.append(False, (drafts[:-1] > 0) & (accepted[:-1] == drafts[:-1]))
    offered, first = drafts > 0, accepted > 0
    goes_on, ends = int(np.maximum(accepted - 1, 0).sum()), int((first & (accepted < drafts)).sum())

    def likelihoods(parameters: Floats) -> tuple[float, float]:
        """Of everything, and of the offers alone."""
        enter, stay, offer = np.clip(special.expit(parameters), _TINY, 1 - _TINY)
        copied = np.where(in_full, stay, 0.0)
        is_offered = copied + (1 - copied) * offer
        is_right = copied * stay + (1 - copied) * offer * enter
        chance = np.where(offered, np.where(first, is_right, is_offered - is_right), 1 - is_offered)
        total = np.log(np.maximum(chance, _TINY)).sum() + goes_on * np.log(stay) + ends * np.log1p(-stay)
        return float(total), float(np.log(np.maximum(np.where(offered, is_offered, 1 - is_offered), _TINY)).sum())

    found = optimize.minimize(
        lambda parameters: -likelihoods(parameters)[0], [-1.0, 1.0, 0.0], method="L-BFGS-B", bounds=[(-9, 9)] * 3
    )
    enter, stay, offer = special.expit(found.x).tolist()
    total, of_offers = likelihoods(found.x)
    return Fit("copying", {"enter": enter, "stay": stay, "offer": offer}, total - of_offers, 2)


def _goodness(recorded: RecordedSteps, trials: _Trials, best: Fit) -> Goodness:
    made = recorded.drafts > 0
    longest = int(recorded.drafts.max(initial=0))
    by_position = [float((recorded.accepted[recorded.drafts > place] > place).mean()) for place in range(longest)]
    same = recorded.stream[1:] == recorded.stream[:-1]
    pair = (recorded.accepted[:-1][same], recorded.accepted[1:][same])
    varies = same.sum() > 2 and pair[0].std() > 0 and pair[1].std() > 0
    return Goodness(
        requests=trials.streams,
        steps=recorded.drafts.size,
        drafts=int(recorded.drafts.sum()),
        accepted=int(recorded.accepted.sum()),
        tokens_per_step=1 + float(recorded.accepted.sum()) / max(1, int(made.sum())),
        by_position=by_position,
        request_cv=_request_cv(trials),
        lag1=float(np.corrcoef(*pair)[0, 1]) if varies else None,
        chi2_p=_chi2_p(recorded, best),
    )


def _request_cv(trials: _Trials) -> float | None:
    """Variation of the requests' rates beyond that of equally likely drafts."""
    total = np.bincount(trials.stream, minlength=trials.streams)
    taken = np.bincount(trials.stream, weights=trials.taken, minlength=trials.streams)
    judged = total > 0
    if judged.sum() < 2:
        return None
    rates, mean = taken[judged] / total[judged], trials.taken.mean()
    chance = float((mean * (1 - mean) / total[judged]).mean())
    return float(np.sqrt(max(0.0, rates.var(ddof=1) - chance)) / mean) if mean else None


def _chi2_p(recorded: RecordedSteps, best: Fit) -> float | None:
    """Chi-square test of the accepted counts of full steps against what a process expects of them."""
    longest = int(recorded.drafts.max(initial=0))
    chance: Callable[[int], float]
    if best.process in ("iid", "beta"):
        chance = lambda _place: float(best.keys["rate"])  # type: ignore[arg-type]  # noqa: E731
    elif best.process == "positions":
        rates = best.keys["rates"]
        chance = lambda place: float(rates[place])  # type: ignore[index]  # noqa: E731
    else:
        return None  # counts depend on where a step lies
    full = recorded.accepted[recorded.drafts == longest]
    expected, reached = [], 1.0
    for place in range(longest):
        expected.append(reached * (1 - chance(place)))
        reached *= chance(place)
    expected_counts = np.array([*expected, reached]) * full.size
    counts = np.bincount(full, minlength=longest + 1)
    enough = expected_counts >= 5
    freedom = int(enough.sum()) - 1 - best.parameters
    if freedom < 1:
        return None
    chi2 = (((counts - expected_counts) ** 2)[enough] / expected_counts[enough]).sum()
    return float(stats.chi2.sf(chi2, freedom))
