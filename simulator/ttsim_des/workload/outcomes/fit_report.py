"""How well a fitted model stands for its bank: what was matched, and what was not and is a check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ttsim_des.workload.outcomes.accuracy import auc, best_of_n, majority, pass_at_n
from ttsim_des.workload.outcomes.bank import Bank
from ttsim_des.workload.outcomes.draws import RIGHT
from ttsim_des.workload.outcomes.fit import Moments, fit, fresh_draws, moments, possible_cuts, without_cut
from ttsim_des.workload.outcomes.model import Parameters
from ttsim_des.workload.outcomes.scores import separation

RATIOS = Moments._fields[:6]
"""Moments whose errors are relative; those of the others are in points."""
BOOTSTRAPS = 200
SCORE_DRAWS = 400


class Row(NamedTuple):
    """One number of the bank and of fresh draws of its model; `spread` is the bootstrap's standard error of the bank's.

    `error` is in percent, or in points for shares (`is_share`); `fitted` tells what was matched from what is a check.
    """

    name: str
    bank: float
    model: float
    error: float
    spread: float
    is_share: bool
    fitted: bool


class FitReport(NamedTuple):
    """A fit and its rows; `ks` is the distance of the lengths' distributions, which nothing was matched to."""

    parameters: Parameters
    problems: int
    samples: int
    rows: Sequence[Row]
    ks: float


def fit_bank(bank: Bank) -> FitReport:
    """Fit the parametric model to a bank and compare fresh draws with it."""
    from scipy.stats import ks_2samp

    tokens, answer, score = bank.matrix()
    tried = []
    for cut in possible_cuts(tokens, answer):  # of two ways to understand a cut, the one that fits better
        kept = without_cut(tokens, answer, cut)
        tried.append((fit(tokens, kept, cut), kept))
    (parameters, _), answer = min(tried, key=lambda one: one[0].misfit)
    problems, samples = tokens.shape
    drawn_tokens, drawn_answer = fresh_draws(parameters, samples)
    wanted, got = moments(tokens, answer), moments(drawn_tokens, drawn_answer)
    spreads = _bootstrap(tokens, answer)
    rows = []
    for name, measured, drawn, spread in zip(Moments._fields, wanted, got, spreads, strict=True):
        rows.append(_row(name, measured, drawn, spread, is_share=name not in RATIOS, fitted=True))
    for k in (2, 4):
        if k < samples:
            for name, function in (("pass_at", pass_at_n), ("majority_at", majority)):
                measured = float(np.mean([function(part) for part in _parts(answer, k)]))
                rows.append(_row(f"{name}_{k}", measured, function(drawn_answer[:, :k]), 0.0, True, False))
    if score is not None:
        rows += _score_rows(answer, score)
    ks = float(ks_2samp(tokens.ravel(), drawn_tokens.ravel(), method="asymp").statistic)
    return FitReport(parameters, problems, samples, rows, ks)


def _row(name: str, bank: float, model: float, spread: float, is_share: bool, fitted: bool) -> Row:
    error = 100 * (model - bank) if is_share else 100 * (model / bank - 1)
    spread = 100 * spread if is_share else 100 * spread / bank
    return Row(name, bank, model, error, spread, is_share, fitted)


def _parts(answer: NDArray[np.int32], k: int) -> list[NDArray[np.int32]]:
    """Disjoint groups of k samples of every problem."""
    return [answer[:, start : start + k] for start in range(0, answer.shape[1] - k + 1, k)]


def _bootstrap(tokens: NDArray[np.int64], answer: NDArray[np.int32]) -> list[float]:
    """Standard errors of the bank's moments, by drawing its problems again and again."""
    random = np.random.Generator(np.random.Philox(0))
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = random.integers(0, len(tokens), len(tokens))
        drawn.append(moments(tokens[rows], answer[rows]))
    spreads: list[float] = np.std(drawn, axis=0).tolist()
    return spreads


def _score_rows(answer: NDArray[np.int32], score: NDArray[np.float64]) -> list[Row]:
    """Best of n by the bank's scores, and by scores drawn with the bank's AUC for the bank's own samples."""
    measured = auc(answer, score)
    if measured is None:
        return []
    random = np.random.Generator(np.random.Philox(1))
    distance = separation(measured)
    drawn = [
        best_of_n(answer, random.standard_normal(answer.shape) + distance * (answer == RIGHT))
        for _ in range(SCORE_DRAWS)
    ]
    return [
        _row("verifier_auc", measured, measured, 0.0, True, True),
        _row("best_of_n", best_of_n(answer, score), float(np.mean(drawn)), 0.0, True, False),
    ]


def text(name: str, report: FitReport) -> str:
    """The report as a table."""
    parameters = ", ".join(f"{key} {value:g}" for key, value in report.parameters._asdict().items())
    lines = [
        f"{name or 'bank'}: {report.problems} problems x {report.samples} samples",
        f"  {'':24} {'bank':>10} {'model':>10} {'error':>10}  {'+- of the bank':>14}",
    ]
    for row in report.rows:
        unit = "points" if row.is_share else "%"
        spread = f"{row.spread:.1f}" if row.spread else "-"
        what = "" if row.fitted else "  (check)"
        lines.append(
            f"  {row.name:24} {row.bank:>10.4g} {row.model:>10.4g} {row.error:>+7.1f} {unit:6} {spread:>8}{what}"
        )
    return "\n".join([*lines, f"  {'KS of lengths':24} {'':10} {report.ks:>10.3f}  (check)", f"  {parameters}"]) + "\n"
