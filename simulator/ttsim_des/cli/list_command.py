"""`ttsim-des list`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

KINDS = ("scenarios", "gpus", "models", "engines", "outcomes")


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(KINDS))
def command(kind: str | None) -> None:
    """List the bundled scenarios, GPUs, models, engines and outcome profiles, or one KIND of them.

    \b
    Examples:
      ttsim-des list
      ttsim-des list models
    """
    from ttsim_des.assets import names

    for each in (kind,) if kind else KINDS:
        if kind is None:
            click.echo(f"{each}:")
        entries = names(each)  # type: ignore[arg-type]  # click has checked it
        width = max((len(name) for name in entries), default=0)
        for name in entries:
            line = f"{name:{width}}  {_described(each, name)}".rstrip()
            click.echo(line if kind else f"  {line}")


def _described(kind: str, name: str) -> str:
    """One line about a bundled thing, from its own file."""
    from ttsim_des.assets import root

    if kind == "scenarios":
        return str(_toml(root("scenarios") / f"{name}.toml").get("description", ""))
    folder = root("profiles") / kind
    if kind == "models":
        return str(_toml(folder / f"{name}.toml").get("source", ""))
    if kind == "outcomes":
        profile = _toml(folder / f"{name}.toml")
        return f"{profile.get('model', '')} on {profile.get('dataset', '')}; {profile.get('source', '')}"
    if kind == "gpus":
        meta = _toml(folder / name / "meta.toml")
        return f"{meta.get('device', '')}, {meta.get('memory_gib', '?')} GiB; {meta.get('source', '')}"
    engine = _toml(folder / f"{name}.toml")
    return f"{engine.get('engine', '')} {engine.get('version', '')}"


def _toml(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)
