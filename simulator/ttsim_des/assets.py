"""Where the bundled data lives: profiles, scenarios and traces, in a checkout or inside the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["profiles", "scenarios", "traces"]
Catalogue = Literal["gpus", "models", "engines", "outcomes", "calibrations", "scenarios"]

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def root(kind: Kind) -> Path:
    """The folder of one kind of bundled data.

    In a checkout that is `<repository>/<kind>`; in an installed wheel the build put it beside the modules.
    """
    if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / kind).is_dir():
        return _CHECKOUT / kind
    return _PACKAGE / "bundled" / kind


def names(catalogue: Catalogue) -> list[str]:
    """The bundled names that a scenario (or the command line) may use, sorted."""
    if catalogue == "gpus":
        return sorted(meta.parent.name for meta in (root("profiles") / "gpus").glob("*/meta.toml"))
    folder = root("scenarios") if catalogue == "scenarios" else root("profiles") / catalogue
    return sorted(file.stem for file in folder.glob("*.toml"))
