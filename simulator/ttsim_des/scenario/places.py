"""Where each key of a scenario was said.

A key is written as TOML writes it: dotted, with parts quoted where they must be, and array elements counted from 0
(`phases.0.rate_per_s`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ttsim_des.errors import InputError

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")

KeyPath = tuple[str, ...]


def format_key(parts: Iterable[str | int]) -> str:
    """A key as TOML writes it: `("a", "b c", 0)` is `a."b c".0`."""
    texts = (str(part) for part in parts)
    return ".".join(text if _BARE.match(text) else json.dumps(text, ensure_ascii=False) for text in texts)


def _line_and_column(place: str) -> tuple[float, float]:
    match = re.search(r":(\d+):(\d+)\Z", place)
    return (int(match[1]), int(match[2])) if match and not place.startswith("--") else (math.inf, 0)


@dataclass
class SourceMap:
    """Where each key of a scenario was said: "file:line:column", or the command-line option that set it."""

    root: str
    """The place of the whole: what a key without any place of its own gets."""
    places: dict[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """The place of `key`, or of the nearest table around it."""
        while key:
            if key in self.places:
                return self.places[key]
            key = key.rpartition(".")[0]
        return self.root

    def override(self, key: str, place: str) -> None:
        """`key` is now said at `place`; everything said below it is forgotten, tables around it are kept."""
        for inner in [known for known in self.places if known.startswith(f"{key}.")]:
            del self.places[inner]
        self.places[key] = place
        while key := key.rpartition(".")[0]:
            self.places.setdefault(key, place)

    def locate(self, error: InputError) -> InputError:
        """The same problems, those about a key with its place, in the order of the file."""
        problems = [problem.at(self.where(problem.key)) if problem.key else problem for problem in error.problems]
        return InputError(sorted(problems, key=lambda problem: _line_and_column(problem.where)))
