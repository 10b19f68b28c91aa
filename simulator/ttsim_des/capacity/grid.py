"""The points of a question: all combinations of values, a list in a file, or ranges to search in."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ttsim_des.errors import bad_input

Variant = tuple[str, ...]
"""Overrides, `key=value` each."""
MOST_VARIANTS = 10_000
MOST_FREE = 2
"""So many ranges can be tried on a grid; more have to be searched."""
VALUES_OF_A_RANGE = 8
LOG_FROM = 16
"""A range whose ends are this factor apart is divided by ratios, not by differences."""
_RANGE = re.compile(r"^(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)$")


@dataclass(frozen=True, slots=True)
class Axis:
    """One key: the values to try, or the ends of a range of them."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = True

    @property
    def is_free(self) -> bool:
        """Whether it is a range."""
        return not self.values

    @property
    def is_log(self) -> bool:
        """Whether the range is divided by ratios."""
        return self.low > 0 and self.high >= LOG_FROM * self.low

    def text(self, value: float) -> str:
        """The override for a value of the range."""
        return f"{self.key}={round(value)}" if self.is_whole else f"{self.key}={value:.6g}"

    def overrides(self) -> list[str]:
        """Of all values; of a range, so many evenly over it."""
        if not self.is_free:
            return [f"{self.key}={value}" for value in self.values]
        steps = VALUES_OF_A_RANGE - 1
        if self.is_log:
            values = [self.low * (self.high / self.low) ** (step / steps) for step in range(steps + 1)]
        else:
            values = [self.low + (self.high - self.low) * step / steps for step in range(steps + 1)]
        return list(dict.fromkeys(self.text(value) for value in values))


def axes(vary: Sequence[str]) -> list[Axis]:
    """The axes that a user asks for; InputError for what is neither KEY=a,b,c nor KEY=LOW..HIGH."""
    found = []
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not key or not all(values.split(",")):
            raise bad_input(f"{text!r} varies nothing", key="--vary", expected="KEY=a,b,c or KEY=LOW..HIGH")
        if (ends := _RANGE.match(values)) is None:
            found.append(Axis(key, tuple(values.split(","))))
            continue
        low, high = float(ends[1]), float(ends[2])
        if low >= high:
            raise bad_input(f"{text!r} is an empty range", key="--vary", expected="KEY=LOW..HIGH, LOW below HIGH")
        found.append(Axis(key, (), low, high, "." not in ends[1] + ends[2]))
    if len({axis.key for axis in found}) < len(found):
        raise bad_input("a key is varied twice", key="--vary", expected="one --vary for a key, with all its values")
    return found


def needs_search(found: Sequence[Axis]) -> bool:
    """Whether there are too many ranges for a grid."""
    return sum(axis.is_free for axis in found) > MOST_FREE


def grid(vary: Sequence[str]) -> list[Variant]:
    """All combinations of the values; InputError for what cannot be read, and for too many of them."""
    found = axes(vary)
    if needs_search(found):
        raise bad_input(
            "more than two ranges have no grid", key="--vary", expected="values, KEY=a,b,c; `ttsim-des plan` can search"
        )
    variants = list(product(*(axis.overrides() for axis in found)))
    if len(variants) > MOST_VARIANTS:
        raise bad_input(f"{len(variants):,} variants", key="--vary", expected=f"at most {MOST_VARIANTS:,}")
    return variants


def points_and_grid(vary: Sequence[str], points: Sequence[Variant]) -> list[Variant]:
    """Every point (or none) with every combination of the values; InputError for what `grid` refuses."""
    combinations: list[Variant] = grid(vary) if vary else [()]
    variants = [(*point, *combination) for point in points or [()] for combination in combinations]
    if len(variants) > MOST_VARIANTS:
        raise bad_input(f"{len(variants):,} variants", key="--points", expected=f"at most {MOST_VARIANTS:,}")
    return variants


def points_of(texts: Sequence[str]) -> list[Variant]:
    """Points from `KEY=VALUE KEY=VALUE ...`; InputError for what is not of that form."""
    points = []
    for text in texts:
        point = tuple(text.split())
        if not point or not all(part.partition("=")[0] and "=" in part for part in point):
            raise bad_input(f"{text!r} is no point", key="plan.points", expected="KEY=VALUE KEY=VALUE ...")
        points.append(point)
    return points


def read_points(path: Path) -> list[Variant]:
    """Points from a CSV file whose header names keys; an empty cell leaves its key alone. InputError for no points."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_input(f"these points cannot be read: {error}", where=str(path), expected="a CSV file") from None
    points = []
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise bad_input("not as many cells as the header has", where=f"{path}:{number}")
        points.append(tuple(f"{key}={value}" for key, value in row.items() if value != ""))
    if not points:
        raise bad_input("there is no point", where=str(path), expected="keys in the header, a point a row")
    return points
