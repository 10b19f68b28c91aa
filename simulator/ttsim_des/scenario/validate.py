"""Values to a `Scenario`: every problem at once, in words that name the key, the value and what was expected."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ttsim_des.errors import Problem, nearest_name
from ttsim_des.scenario.describe import all_keys, choices_of, expected_of, names_of, tables_of
from ttsim_des.scenario.places import format_key
from ttsim_des.scenario.schema import Scenario

_SHOWN_NAMES = 16
_RANGE_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


def validate(values: Mapping[str, Any]) -> tuple[Scenario | None, list[Problem]]:
    """The scenario, or None and what is wrong with it."""
    version = values.get("schema")
    if isinstance(version, int) and not isinstance(version, bool) and version > 1:
        message = f"this is format {show(version)}, written for a newer ttsim-des"
        return None, [Problem(message, key="schema", expected="1")]
    if isinstance(version, bool | float):  # equal to 1 as Python counts, but not the integer 1
        return None, [Problem(f"{show(version)} is not a format version", key="schema", expected="1")]
    try:
        return Scenario.model_validate(values), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        return None, [_problem(item["type"], item["loc"], item["input"], values) for item in found]


def validate_table(table: type[BaseModel], values: Any) -> Any:
    """One table of the scenario by itself, or None when something in it is wrong (reported by `validate`)."""
    try:
        return table.model_validate(values)
    except ValidationError:
        return None


def show(value: Any) -> str:
    """A value as a message shows it, cut to a readable length."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    if isinstance(value, datetime.date | datetime.time):
        text = value.isoformat()
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key} = ..." for key in list(value)[:3]) + "}"
    elif isinstance(value, list):
        text = f"a list of {len(value)}"
    else:
        text = f'"{value}"' if isinstance(value, str) else str(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong_type(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return "is a table" if isinstance(value, Mapping) else "is a list"
    if isinstance(value, bool):
        return f"{show(value)} is not a number or text"
    kinds = {int: "a whole number", float: "not a whole number", str: "text"}
    return f"{show(value)} is {kinds.get(type(value), 'a date or a time')}"


def _problem(kind: str, loc: tuple[str | int, ...], value: Any, root: Mapping[str, Any]) -> Problem:
    model, name, path, tag = _resolve(loc)
    key = format_key(path)
    expected = expected_of(model, name) if name else "a table"
    if kind == "missing":
        return Problem("missing", key=key, expected=expected)
    if kind == "extra_forbidden":
        return _unknown_key(model, name, path, tag)
    if kind in ("union_tag_not_found", "union_tag_invalid") and isinstance(value, Mapping):
        tags = list(tables_of(model, name))
        one_of, key = f"one of {', '.join(tags)}", f"{key}.distribution"
        if "distribution" not in value:
            return Problem("missing", key=key, expected=one_of)
        said = value["distribution"]
        return Problem(f"{show(said)} is not a distribution", key=key, expected=one_of, nearest=_nearest(said, tags))
    if kind == "literal_error":
        choices = choices_of(model, name)
        return Problem(f"{show(value)} is not valid", key=key, expected=expected, nearest=_nearest(value, choices))
    if kind in _RANGE_ERRORS or kind == "string_pattern_mismatch" or _is_huge(value):
        what = "is not valid" if isinstance(value, str) else "is out of range"
        return Problem(f"{show(value)} {what}", key=key, expected=expected)
    return Problem(_wrong_type(value), key=key, expected=expected)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63


def _nearest(said: Any, names: list[str]) -> str:
    return nearest_name(said[:100].lower(), names) if isinstance(said, str) else ""


def _resolve(loc: tuple[str | int, ...]) -> tuple[type[BaseModel], str, tuple[str | int, ...], str]:
    """The table that an error is about, the key in it, the key's path in the file, and the distribution in force.

    Pydantic puts the distribution's name into the location, where the file has no such key.
    """
    model: type[BaseModel] = Scenario
    path: list[str | int] = []
    tag, name = "", ""
    parts = list(loc)
    while parts:
        part = parts.pop(0)
        path.append(part)
        name = str(part)
        tables = tables_of(model, name) if parts else {}
        if len(tables) > 1:
            tag = str(parts.pop(0))
            model = tables[tag]
        elif tables:
            model, tag = tables[""], ""
        elif parts:
            break
    return model, name, tuple(path), tag


def _unknown_key(model: type[BaseModel], name: str, path: tuple[str | int, ...], tag: str) -> Problem:
    names = names_of(model)
    nearest = _nearest(name, names)
    message, expected = "unknown key", ""
    if tag:
        message = f'unknown key for distribution = "{tag}"'
    if not nearest:
        nearest = _elsewhere(name)
        expected = f"one of {', '.join(names)}" if len(names) <= _SHOWN_NAMES and not nearest else ""
    return Problem(message, key=format_key(path), expected=expected, nearest=nearest)


def _elsewhere(name: str) -> str:
    """The full key of the one other table that has a key of this name, or ""."""
    homes = {doc.key for doc in all_keys() if doc.key.rpartition(".")[2] == name and doc.key.count(".") < 2}
    return homes.pop() if len(homes) == 1 else ""
