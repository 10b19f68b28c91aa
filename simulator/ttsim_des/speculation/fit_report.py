"""What `ttsim-des fit acceptance` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ttsim_des.speculation.fit import Fit, Goodness


def as_document(fits: Sequence[Fit], goodness: Goodness) -> dict[str, Any]:
    """The same as plain data; the best process first."""
    rows = [{"process": fit.process, **fit.keys, "log_likelihood": fit.log_likelihood, "aic": fit.aic} for fit in fits]
    return {"schema": 1, "steps": goodness._asdict(), "fits": rows}


def text(fits: Sequence[Fit], goodness: Goodness) -> str:
    """The table for people."""
    return "".join(f"{line}\n" for line in _lines(fits, goodness))


def _lines(fits: Sequence[Fit], goodness: Goodness) -> Iterator[str]:
    drafts = f"{goodness.accepted:,} of {goodness.drafts:,} drafts accepted"
    yield f"{goodness.requests:,} requests, {goodness.steps:,} steps, {drafts}"
    yield f"  tokens a step with drafts    {goodness.tokens_per_step:.3f}"
    yield f"  accepted by position         {' '.join(f'{100 * rate:.1f}' for rate in goodness.by_position)} %"
    if goodness.request_cv is not None:
        yield f"  between requests             {100 * goodness.request_cv:.1f} % variation of the rate beyond chance"
    if goodness.lag1 is not None:
        yield f"  from step to step            correlation {goodness.lag1:.2f}"
    yield ""
    yield f"{'process':<12} {'parameters':>10} {'log-likelihood':>15} {'AIC':>12}"
    best = fits[0]
    for fit in fits:
        more = "" if fit is best else f"  (+{fit.aic - best.aic:,.0f})"
        yield f"{fit.process:<12} {fit.parameters:>10} {fit.log_likelihood:>15,.1f} {fit.aic:>12,.1f}{more}"
    yield ""
    if goodness.chi2_p is not None:
        yield f"counts of accepted drafts against {best.process}: p = {goodness.chi2_p:.3g}"
        yield ""
    yield "[engine.speculative.acceptance]"
    yield f'process = "{best.process}"'
    for key, value in best.keys.items():
        yield f"{key} = {_number(value)}"


def _number(value: float | list[float] | list[int]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_number(each) for each in value) + "]"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
