"""What the schema asks of every key, in plain words: for messages, for `docs/scenarios.md` and for name look-ups."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ttsim_des.scenario.schema import Scenario

NAME_PATTERN_TEXT = "letters, digits, '.', '_' and '-', at most 100, starting with a letter or a digit"


@dataclass(frozen=True)
class KeyDoc:
    """One key of the format. `variant` is the `distribution` it belongs to ("" for all); `default` is TOML or ""."""

    key: str
    variant: str
    expected: str
    default: str
    required: bool


@dataclass(frozen=True)
class _Type:
    """A field's type without its wrapping: the options of a union (without None) and the constraints."""

    options: tuple[Any, ...]
    constraints: dict[str, Any]


def tables_of(model: type[BaseModel], name: str) -> dict[str, type[BaseModel]]:
    """The tables that key `name` of `model` may hold, by the value of `distribution` ("" when there is one only)."""
    field = _fields(model).get(name)
    if field is None:
        return {}
    models = [option for option in _unwrap(field).options if isinstance(option, type) and issubclass(option, BaseModel)]
    if len(models) < 2:
        return dict.fromkeys([""], models[0]) if models else {}
    return {tag: option for option in models for tag in get_args(option.model_fields["distribution"].annotation)}


def names_of(model: type[BaseModel]) -> list[str]:
    """The keys that a table may have."""
    return list(_fields(model))


def expected_of(model: type[BaseModel], name: str) -> str:
    """What key `name` of `model` must be, in words ("" when the model has no such key)."""
    field = _fields(model).get(name)
    if field is None:
        return ""
    tables = tables_of(model, name)
    if len(tables) > 1:
        return f"a table with distribution = one of {', '.join(tables)}"
    return "a table" if tables else _expected(_unwrap(field))


def choices_of(model: type[BaseModel], name: str) -> list[str]:
    """The valid names when key `name` is a choice among names."""
    field = _fields(model).get(name)
    choices = _choices(_unwrap(field)) if field is not None else []
    return [choice for choice in choices if isinstance(choice, str)]


@functools.cache
def all_keys() -> tuple[KeyDoc, ...]:
    """Every key of the format, in the order of the schema; tables themselves are not listed."""
    return tuple(_walk(Scenario, (), ""))


def _walk(model: type[BaseModel], base: tuple[str, ...], variant: str) -> list[KeyDoc]:
    docs: list[KeyDoc] = []
    for name, field in _fields(model).items():
        tables = tables_of(model, name)
        for tag, table in tables.items():
            docs += _walk(table, (*base, name), tag)
        if not tables:
            key = ".".join((*base, name))
            docs.append(KeyDoc(key, variant, expected_of(model, name), _default(field), field.is_required()))
    return docs


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _unwrap(field: FieldInfo) -> _Type:
    return _kind(field.annotation, field.metadata)


def _kind(annotated: Any, constrained: list[Any]) -> _Type:
    options: list[Any] = []
    constraints: dict[str, Any] = {}

    def visit(annotation: Any, metadata: list[Any]) -> None:
        for item in metadata:
            visit_metadata(item)
        origin = get_origin(annotation)
        if origin is Annotated:
            inner, *more = get_args(annotation)
            visit(inner, more)
        elif origin in (Union, UnionType):
            for option in get_args(annotation):
                visit(option, [])
        elif annotation is not type(None):
            options.append(annotation)

    def visit_metadata(item: Any) -> None:
        if isinstance(item, FieldInfo):
            for inner in item.metadata:
                visit_metadata(inner)
        for name in ("gt", "ge", "lt", "le", "pattern"):
            if getattr(item, name, None) is not None:
                constraints[name] = getattr(item, name)

    visit(annotated, constrained)
    return _Type(tuple(options), constraints)


def _choices(kind: _Type) -> list[Any]:
    return [choice for option in kind.options if get_origin(option) is Literal for choice in get_args(option)]


def _expected(kind: _Type) -> str:
    choices = _choices(kind)
    if choices:
        return str(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(str, choices))}"
    option = kind.options[0]
    if get_origin(option) is list:
        noun, _, bounds = _expected(_kind(get_args(option)[0], [])).removeprefix("a ").partition(" from ")
        many = noun.replace("list of", "lists of") if noun.startswith("list of") else f"{noun}s"
        return f"a list of {many}" + (f" from {bounds}" if bounds else "")
    if option is bool:
        return "true or false"
    if option is str:
        return NAME_PATTERN_TEXT if "pattern" in kind.constraints else "text"
    noun = "a whole number" if option is int else "a number"
    low, high, above = (kind.constraints.get(name) for name in ("ge", "le", "gt"))
    if above is not None:
        return f"{noun} above {number(above)}" + (f", at most {number(high)}" if high is not None else "")
    if low is not None and high is not None:
        return f"{noun} from {number(low)} to {number(high)}"
    return noun + (f" of at least {number(low)}" if low is not None else "")


def number(value: float) -> str:
    """A bound as TOML writes it: digits grouped by underscores, no exponent."""
    return f"{int(value):_}" if value == int(value) else str(value)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined or value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else number(value)
