"""Service-level objectives: `query.latency_s.p95 < 60`, held or not by several replications."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.metrics.flat import Flat, in_all
from ttsim_des.metrics.stats import mean_interval

State = Literal["holds", "fails", "unclear", "withheld"]
_SLO = re.compile(r"^\s*(?P<metric>[a-z0-9_.]+)\s*(?P<sign>[<>])=?\s*(?P<limit>-?\d+(?:\.\d+)?(?:e-?\d+)?)\s*$")


@dataclass(frozen=True, slots=True)
class Slo:
    """A limit on a metric of summary.json, by its path."""

    metric: str
    is_upper: bool
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {'<' if self.is_upper else '>'} {self.limit:g}"

    def state(self, replications: Sequence[Flat]) -> State:
        """`holds` or `fails` when the whole 95 % interval lies on one side, else `unclear`.

        `withheld` when a replication does not give the metric: too few observations, or a queue that grew. InputError
        for a metric that does not exist.
        """
        if self.metric not in replications[0]:
            raise bad_input(
                f"there is no metric {self.metric!r}",
                key="--slo",
                expected="a number of summary.json by its path, such as query.latency_s.p95",
                nearest=nearest_name(self.metric, replications[0]),
            )
        known = in_all(replications, self.metric)
        if known is None:
            return "withheld"
        mean, half_width = mean_interval(known)
        low, high = mean - half_width, mean + half_width
        if (high <= self.limit) if self.is_upper else (low >= self.limit):
            return "holds"
        if (low > self.limit) if self.is_upper else (high < self.limit):
            return "fails"
        return "unclear"

    def is_met(self, mean: float) -> bool:
        """Whether a mean keeps the limit, however sure it is."""
        return mean <= self.limit if self.is_upper else mean >= self.limit


def parse_slos(texts: Sequence[str]) -> list[Slo]:
    """SLOs from what a user wrote; InputError for one that is not `METRIC < NUMBER` or `METRIC > NUMBER`."""
    slos = []
    for text in texts:
        if (match := _SLO.match(text)) is None:
            raise bad_input(
                f"{text!r} is no SLO",
                key="--slo",
                expected="METRIC < NUMBER or METRIC > NUMBER, such as 'query.latency_s.p95 < 60'",
            )
        slos.append(Slo(match["metric"], match["sign"] == "<", float(match["limit"])))
    return slos


def worst(states: Mapping[str, State]) -> State:
    """Of several SLOs: fails before withheld before unclear before holds."""
    for state in ("fails", "withheld", "unclear"):
        if state in states.values():
            return state
    return "holds"
