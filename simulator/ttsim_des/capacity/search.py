"""The cheapest configuration where ranges leave too many for a grid: a guided search (optuna, an optional extra).

Tree-structured Parzen estimators propose, in batches as wide as the executor; what the bounds rule out costs no
simulation and still teaches. The same seed proposes the same candidates, whatever they run on, for one number of
workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf
from typing import Any

from ttsim_des.capacity.candidate import USD, Candidate
from ttsim_des.capacity.grid import Axis, Variant
from ttsim_des.capacity.plan import Choice, is_better, look_at
from ttsim_des.capacity.question import Question
from ttsim_des.errors import bad_input

FAR = 10.0
"""How badly a candidate breaks its SLOs of which no more is known than that it does."""


def search(
    question: Question,
    axes: Sequence[Axis],
    points: Sequence[Variant],
    objective: str = USD,
    *,
    trials: int,
    seed: int,
) -> Choice:
    """The best of `trials` proposals: smallest objective among those that surely keep all SLOs.

    `points` are tried with every proposal as one more choice. InputError when optuna is not installed or nothing that
    was proposed can be deployed.
    """
    optuna = _optuna()
    sampler = optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=min(20, max(4, trials // 4)),
        multivariate=True,
        constant_liar=True,
    )
    study = optuna.create_study(sampler=sampler)
    found: dict[Variant, Candidate] = {}
    best: Candidate | None = None
    asked = 0
    while asked < trials:
        number = min(question.executor.workers, trials - asked)
        asked += number
        batch = [(trial := study.ask(), _proposal(trial, axes, points)) for _ in range(number)]
        new = list(dict.fromkeys(variant for _, variant in batch if variant not in found))
        for candidate in look_at(question, new, objective, prune=True):
            candidate.place = len(found)
            found[candidate.variant] = candidate
        question.progress(f"{asked} of {trials} trials: {' '.join(batch[0][1])}")
        question.judge([found[variant] for variant in new if not found[variant].why_not])
        for trial, variant in batch:
            candidate = found[variant]
            trial.set_constraint("slos", _excess(question, candidate))
            value = candidate.value(objective)
            study.tell(trial, candidate.at_least(objective) or 0.0 if value is None else value)
            if is_better(candidate, best, objective):
                best = candidate
    candidates = list(found.values())
    if not any(candidate.gpus for candidate in candidates):
        raise bad_input(f"nothing proposed can be deployed: {candidates[0].why_not}", key="--vary")
    return Choice(candidates, objective, best)


def _proposal(trial: Any, axes: Sequence[Axis], points: Sequence[Variant]) -> Variant:
    variant: list[str] = []
    if len(points) > 1:
        variant += points[trial.suggest_categorical("point", range(len(points)))]
    elif points:
        variant += points[0]
    for axis in axes:
        if not axis.is_free:
            variant.append(f"{axis.key}={trial.suggest_categorical(axis.key, axis.values)}")
        elif axis.is_whole:
            variant.append(axis.text(trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.is_log)))
        else:
            variant.append(axis.text(trial.suggest_float(axis.key, axis.low, axis.high, log=axis.is_log)))
    return tuple(variant)


def _excess(question: Question, candidate: Candidate) -> float:
    """By how much of its limit the worst SLO is missed; not above 0 when all are surely kept."""
    if candidate.state == "holds":
        return 0.0
    worst = 0.0
    for slo in question.slos:
        value = candidate.value(slo.metric) if candidate.is_stable else None
        if value is None:
            value = candidate.at_least(slo.metric)
        if value is None:
            return FAR
        missed = (value - slo.limit) if slo.is_upper else (slo.limit - value)
        worst = max(worst, missed / abs(slo.limit) if slo.limit else (inf if missed > 0 else 0.0))
    return min(FAR, max(worst, 1e-3))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise bad_input(
            "more than two ranges are searched, and optuna is not installed",
            key="--vary",
            expected='pip install "ttsim-des[search]", or values instead of ranges',
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
