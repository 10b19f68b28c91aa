"""Is run B better than run A? Paired by replication where both had the same draws.

Two runs with one seed share every draw that belongs to both (common random numbers), so the differences of their
replications vary much less than the replications do. Without a common seed: Welch's interval.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.metrics.flat import Flat, in_all
from ttsim_des.metrics.stats import mean_interval, student_t_quantile

Verdict = Literal["better", "worse", "same", "unclear", "differs"]
LOWER_IS_BETTER = (
    *("query.latency_s.", "query.ttft_s.", "query.straggler_share.", "request.ttft_s.", "request.tpot_s."),
    *("request.itl_s.", "request.e2e_s.", "request.queueing_s.", "cost.", "preemption.", "waste."),
    *("load.mean_waiting", "query.refused", "query.open", "accuracy.unanswered_share"),
)
HIGHER_IS_BETTER = (
    *("achieved.", "goodput.share", "goodput.queries_per_s", "goodput.limits.", "prefix_cache.hit_share"),
    *("accuracy.share", "accuracy.pass_at_1", "accuracy.majority", "accuracy.pass_at_n", "speculation.acceptance_"),
)
_GATE = re.compile(r"^\s*(?P<name>[a-z0-9_.]+)\s*(?P<sign>[<>])\s*(?P<limit>[+-]?\d+(?:\.\d+)?)\s*(?P<percent>%)\s*$")


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two runs: means, and B - A in percent of A with half its 95 % interval (infinite when unknown)."""

    name: str
    first: float
    second: float
    change_pct: float
    half_width_pct: float
    is_paired: bool
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Gate:
    """A change that must not be: `query.latency_s.p99 > +5%`."""

    name: str
    is_above: bool
    limit_pct: float

    def broken_by(self, differences: Mapping[str, Difference]) -> str | None:
        """What is wrong, or None; InputError where the metric was not compared."""
        if self.name not in differences:
            raise bad_input(
                f"{self.name!r} is not given by both runs: unknown, or withheld in one",
                key="--fail-if",
                expected="a number of summary.json by its path, such as query.latency_s.mean",
                nearest=nearest_name(self.name, differences),
            )
        change = differences[self.name].change_pct
        if (change > self.limit_pct) if self.is_above else (change < self.limit_pct):
            return f"{self.name}: {change:+.2f} % is {'above' if self.is_above else 'below'} {self.limit_pct:+g} %"
        return None


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Gates from what a user wrote; InputError for one that is not `NAME > +NUMBER%` or `NAME < -NUMBER%`."""
    gates = []
    for text in texts:
        if (match := _GATE.match(text)) is None:
            raise bad_input(
                f"{text!r} is no gate",
                key="--fail-if",
                expected="NAME > +NUMBER% or NAME < -NUMBER%, such as 'query.latency_s.p99 > +5%'",
            )
        gates.append(Gate(match["name"], match["sign"] == ">", float(match["limit"])))
    return gates


def compare(
    first: Mapping[int, Flat], second: Mapping[int, Flat], *, is_paired: bool, band_pct: float
) -> dict[str, Difference]:
    """Every number that all replications of both give. `first`, `second`: numbers by replication.

    `is_paired`: equal replication numbers had equal draws; those that only one run has are left out then. Within
    `band_pct` a change does not matter: `same` when the whole interval lies inside it, `better` or `worse` when it
    lies beside zero and the change is beyond the band, else `unclear`.
    """
    common = sorted(first.keys() & second.keys()) if is_paired else []
    ones = [first[number] for number in common] if common else list(first.values())
    others = [second[number] for number in common] if common else list(second.values())
    found = {}
    for name in ones[0]:
        mine, theirs = in_all(ones, name), in_all(others, name)
        if mine is None or theirs is None:
            continue
        change, half_width = _paired(mine, theirs) if common else _welch(mine, theirs)
        base = float(np.mean(mine))
        scale = 100 / abs(base) if base else (0.0 if change == 0 else math.inf)
        change_pct = change * scale if change else 0.0
        half_pct = half_width * scale if half_width else 0.0
        verdict = _verdict(name, change_pct, half_pct, band_pct)
        found[name] = Difference(name, base, float(np.mean(theirs)), change_pct, half_pct, bool(common), verdict)
    return found


def _paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    return mean_interval([theirs - mine for mine, theirs in zip(first, second, strict=True)])


def _welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Difference of two means and half its interval; infinite where a variance is unknown."""
    change = float(np.mean(second) - np.mean(first))
    if min(len(first), len(second)) < 2:
        return change, math.inf
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    if sum(parts) == 0:
        return change, 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    return change, student_t_quantile(0.975, freedom) * math.sqrt(sum(parts))


def _verdict(name: str, change_pct: float, half_pct: float, band_pct: float) -> Verdict:
    low, high = change_pct - half_pct, change_pct + half_pct
    if -band_pct <= low and high <= band_pct:
        return "same"
    if low <= 0 <= high or abs(change_pct) <= band_pct:
        return "unclear"
    if name.startswith(LOWER_IS_BETTER):
        return "worse" if change_pct > 0 else "better"
    if name.startswith(HIGHER_IS_BETTER):
        return "better" if change_pct > 0 else "worse"
    return "differs"


def scenario_changes(first_toml: str, second_toml: str) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two scenarios, the absent ones None; names and seeds are not looked at."""
    first, second = (_leaves(tomllib.loads(text)) for text in (first_toml, second_toml))
    ignored = ("name", "seed", "description")
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if key not in ignored and first.get(key) != second.get(key)
    }


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
