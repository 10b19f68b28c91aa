"""A scenario as TOML text that loads back to the same scenario."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ttsim_des.scenario.places import format_key


def to_toml(values: Mapping[str, Any]) -> str:
    """`values` (text, numbers, true/false, tables of them) as TOML; None and empty tables are left out."""
    lines: list[str] = []
    _table(values, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    scalars = [(key, value) for key, value in values.items() if value is not None and not isinstance(value, Mapping)]
    if path and scalars:
        lines += ["", f"[{format_key(path)}]"]
    lines += [f"{format_key([key])} = {_scalar(value)}" for key, value in scalars]
    for key, value in values.items():
        if isinstance(value, Mapping):
            _table(value, (*path, key), lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")
