"""Gates: `e2e_s.mean > 2%` fails where the error of a metric is beyond a limit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttsim_des.errors import bad_input, nearest_name

_GATE = re.compile(r"^\s*(?P<name>[a-z0-9_.]+)\s*>\s*(?P<limit>\d+(?:\.\d+)?)\s*(?P<percent>%?)\s*$")


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric and the largest |error| in percent that it may have; for `per_request_e2e_mae_pct` its value itself."""

    name: str
    limit: float

    def broken_by(self, metrics: Mapping[str, Mapping[str, Any]]) -> str | None:
        """What is wrong, or None; InputError where the metric was not compared."""
        if self.name not in metrics:
            raise bad_input(
                f"no metric {self.name!r} was compared",
                key="--fail-if",
                expected="one of the names that validate prints",
                nearest=nearest_name(self.name, metrics),
            )
        row = metrics[self.name]
        value = row["simulated"] if self.name.endswith("_pct") else row["error_pct"]
        if value is None:
            raise bad_input(f"{self.name} was not recorded, so it has no error", key="--fail-if")
        if abs(value) <= self.limit:
            return None
        return f"{self.name}: {value:+.2f} % is beyond {self.limit:g} %"


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Gates from what a user wrote; InputError for one that is not `NAME > NUMBER%`."""
    gates = []
    for text in texts:
        match = _GATE.match(text)
        if match is None:
            raise bad_input(
                f"{text!r} is no gate", key="--fail-if", expected="NAME > NUMBER%, such as 'e2e_s.mean > 2%'"
            )
        gates.append(Gate(match["name"], float(match["limit"])))
    return gates
