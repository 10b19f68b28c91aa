"""A summary as one flat row of numbers, named by their path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Flat = dict[str, float | None]


def flatten(summary: Mapping[str, Any], prefix: str = "") -> Flat:
    """Every number of a summary by its dotted path, None where it is withheld; words, flags and lists are left out."""
    found: Flat = {}
    for name, value in summary.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{path}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[path] = value
    return found


def in_all(rows: Iterable[Flat], name: str) -> list[float] | None:
    """The values of one metric in several runs; None unless all of them give it."""
    values = [row.get(name) for row in rows]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
