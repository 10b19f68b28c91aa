"""From a scenario file to a checked `Scenario`, with the place of every key for the messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsim_des.errors import InputError, Problem, bad_input, nearest_name
from ttsim_des.scenario.overrides import FILE_KEYS, STRATEGY, absolute, apply_overrides
from ttsim_des.scenario.places import SourceMap
from ttsim_des.scenario.rules import broken_rules
from ttsim_des.scenario.salvage import Parts, parts_of, salvage
from ttsim_des.scenario.schema import Scenario
from ttsim_des.scenario.toml_source import parse, read_text
from ttsim_des.scenario.toml_writer import to_toml
from ttsim_des.scenario.validate import validate


@dataclass(frozen=True)
class LoadedScenario:
    """A valid scenario and where it came from.

    Files that it names are relative to `base_dir`. `path` is None when it was not read from a file.
    """

    scenario: Scenario
    path: Path | None
    base_dir: Path
    source: SourceMap

    def locate(self, error: InputError) -> InputError:
        """The same problems, each with the file:line:column (or the option) that said its key."""
        return self.source.locate(error)

    def to_toml(self) -> str:
        """The resolved scenario: every key with its value, files by absolute path; loads back to the same scenario."""
        values = self.scenario.model_dump(by_alias=True, exclude_none=True)
        for key in (*FILE_KEYS, STRATEGY):
            *tables, name = key.split(".")
            table: Any = values
            for part in tables:
                table = table.get(part, {})
            if name in table:
                table[name] = absolute(key, table[name], self.base_dir)
        return to_toml(values)


@dataclass(frozen=True)
class Examined:
    """What an examination of a scenario found: the scenario, or what is wrong and the parts that are not."""

    loaded: LoadedScenario | None
    problems: tuple[Problem, ...]
    parts: Parts
    base_dir: Path
    source: SourceMap


def load_scenario(
    path_or_bundled_name: str | Path, overrides: Sequence[str] = (), seed: int | None = None
) -> LoadedScenario:
    """The scenario in a file, or the bundled one of that name, with `key=value` overrides and a seed applied.

    Raises `InputError` with every problem found, each with its place.
    """
    examined = examine_scenario(path_or_bundled_name, overrides, seed)
    if examined.loaded is None:
        raise InputError(examined.problems)
    return examined.loaded


def examine_scenario(
    path_or_bundled_name: str | Path, overrides: Sequence[str] = (), seed: int | None = None
) -> Examined:
    """Like `load_scenario`, but keeps the parts that are right when others are wrong.

    Raises `InputError` when the file cannot be read, is not TOML, or an override cannot be applied.
    """
    path = find_scenario(path_or_bundled_name)
    source = parse(read_text(path), str(path))
    values, places = source.values, source.map
    apply_overrides(values, overrides, places)
    if seed is not None:
        values["seed"] = seed
        places.override("seed", f"--seed {seed}")
    scenario, problems = validate(values)
    parts = parts_of(scenario) if scenario is not None else salvage(values)
    problems += broken_rules(parts)
    located = places.locate(InputError(problems)).problems
    base_dir = path.resolve().parent
    loaded = LoadedScenario(scenario, path, base_dir, places) if scenario is not None and not problems else None
    return Examined(loaded, located, parts, base_dir, places)


def find_scenario(path_or_bundled_name: str | Path) -> Path:
    """The file of a scenario given by path or by a bundled name; InputError when there is none."""
    text = str(path_or_bundled_name)
    if not text or "\0" in text:
        raise bad_input(
            "not a file name", where=repr(text), expected="a scenario file or the name of a bundled scenario"
        )
    path = Path(text)
    try:
        if path.exists() or path.is_symlink():
            return path
        beside = [str(path.parent / other.name) for other in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    except OSError as error:
        raise bad_input(f"cannot be read: {error.strerror}", where=text[:200]) from None
    bundled = _bundled()
    name = text.removesuffix(".toml")
    if name in bundled:
        return bundled[name]
    nearest = nearest_name(text, beside) or nearest_name(path.name.removesuffix(".toml"), bundled)
    expected = f"a scenario file or one of the bundled: {', '.join(bundled)}" if bundled else "a scenario file"
    raise bad_input("no such file", where=text, expected=expected, nearest=nearest)


def _bundled() -> dict[str, Path]:
    from ttsim_des.assets import root

    return {path.stem: path for path in sorted(root("scenarios").glob("*.toml"))}
