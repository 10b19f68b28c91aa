"""Outcome profiles: the parametric model of one model on one data set, in a file.

profiles/outcomes/<model>-<dataset>.toml
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttsim_des import assets
from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.workload.outcomes.model import Parameters

SCHEMA = 1


class _Length(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    mu: float = Field(ge=0, le=20)
    between_sigma: float = Field(ge=0, le=4)
    within_sigma: float = Field(ge=0, le=4)
    skew: float = Field(ge=-1, le=1)
    rho: float = Field(ge=-1, le=1)
    wrong_log_ratio: float = Field(ge=-3, le=3)
    max_tokens: int = Field(ge=1, le=10_000_000)
    cut_answers: bool = False


class _Correctness(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ease: float = Field(ge=-20, le=20)
    ease_spread: float = Field(ge=0, le=20)
    repeat: float = Field(ge=0, le=1)


class _ProfileToml(BaseModel):
    """`fit` is for people: what was matched, and how well."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(alias="schema", le=SCHEMA)
    model: str
    dataset: str
    source: str
    length: _Length
    correctness: _Correctness
    fit: dict[str, str] = Field(default_factory=dict)


def profile_path(source: str, base_dir: Path, key: str) -> Path:
    """The file of a bundled profile (by name), or one relative to `base_dir`; InputError where there is neither."""
    known = assets.names("outcomes")
    if source in known:
        return assets.root("profiles") / "outcomes" / f"{source}.toml"
    path = base_dir / source
    if not path.is_file():
        raise bad_input(
            f"there is no outcome profile {source!r}",
            key=key,
            expected="a TOML file, a sample bank (.csv, .jsonl, .parquet), or a name of `ttsim-des list outcomes`",
            nearest=nearest_name(source, known),
        )
    return path


def read_profile(path: Path, key: str) -> Parameters:
    """The parameters in a file; InputError naming it and what is wrong."""
    try:
        read = _ProfileToml.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise bad_input(f"outcome profile {path}: {where}: {first['msg']}", key=key) from None
    except (OSError, ValueError) as error:
        raise bad_input(f"outcome profile {path} cannot be read: {error}", key=key) from None
    return Parameters(**read.length.model_dump(), **read.correctness.model_dump())


def profile_toml(model: str, dataset: str, source: str, parameters: Parameters, fitted: Mapping[str, str]) -> str:
    """A profile as text."""
    values = parameters._asdict()
    names = {"length": _Length.model_fields, "correctness": _Correctness.model_fields}
    lines = [
        f"schema = {SCHEMA}",
        *(f"{name} = {json.dumps(text)}" for name, text in (("model", model), ("dataset", dataset))),
        f"source = {json.dumps(source)}",
    ]
    for table, fields in names.items():
        lines += ["", f"[{table}]", *(f"{name} = {json.dumps(values[name])}" for name in fields)]
    lines += ["", "[fit]", *(f"{json.dumps(name)} = {json.dumps(text)}" for name, text in fitted.items())]
    return "\n".join(lines) + "\n"
