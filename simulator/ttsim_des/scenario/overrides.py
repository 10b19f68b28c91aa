"""`--set key=value`: changes to a scenario's values before they are validated."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttsim_des.errors import InputError, Problem
from ttsim_des.scenario.places import SourceMap, format_key
from ttsim_des.scenario.toml_source import MAX_KEY_PARTS, parse_value

FILE_KEYS = frozenset(
    {
        "workload.arrivals.file",
        "workload.prompt.file",
        "workload.output.file",
        "workload.output.source",
        "workload.strategy.graph",
        "latency.calibration",
        "cluster.model",
    }
)
"""Keys that may name a file: in a scenario relative to its folder, in `--set` relative to the current one."""
STRATEGY = "workload.strategy.name"
"""Names a file too where it is a user's own: `file.py:function`."""


def apply_overrides(values: dict[str, Any], overrides: Sequence[str], places: SourceMap) -> None:
    """Change `values` in place, in order, and note in `places` that the command line said so.

    `key=value` sets (value: TOML, else a bare string), `key=` removes what the file says. Tables on the way are
    made when they are not there. InputError for what is not of that form or would go through a value.
    """
    problems = [problem for text in overrides if (problem := _apply(values, text, places)) is not None]
    if problems:
        raise InputError(problems)


def _apply(values: dict[str, Any], text: str, places: SourceMap) -> Problem | None:
    place = f"--set {text if len(text) <= 200 else text[:197] + '...'}"
    key_text, equals, value_text = text.partition("=")
    path = _split(key_text.strip())
    if not equals or path is None:
        return Problem("not of the form key=value", where=place, expected="for example --set cluster.tp=2")
    key, table = format_key(path), values
    for depth, part in enumerate(path[:-1], start=1):
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            return Problem("is a value, not a table", key=format_key(path[:depth]), where=place)
        table = inner
    if value_text.strip():
        table[path[-1]] = absolute(key, parse_value(value_text.strip()), Path())
    else:
        table.pop(path[-1], None)
    places.override(key, place)
    return None


def _split(text: str) -> list[str] | None:
    """The parts of a dotted key, or None when it is not one."""
    if not text or "\n" in text or text.count(".") >= MAX_KEY_PARTS:
        return None
    try:
        table: Any = tomllib.loads(f"{text} = 0")
    except ValueError:
        return None
    parts: list[str] = []
    while isinstance(table, dict):
        if len(table) != 1:  # a comment or a table header, not a key
            return None
        name, table = next(iter(table.items()))
        parts.append(name)
    return parts


def absolute(key: str, value: Any, folder: Path) -> Any:
    """The absolute path when `value` names a file in `folder` and the key may name one; else the value as it is."""
    if not isinstance(value, str) or (key not in FILE_KEYS and key != STRATEGY):
        return value
    file, colon, function = value.rpartition(":") if key == STRATEGY else (value, "", "")
    try:
        path = folder / file
        return f"{path.resolve()}{colon}{function}" if path.is_file() else value
    except (OSError, ValueError):
        return value
