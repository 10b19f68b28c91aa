"""The manifest: what a run was made of, and the only place where wall time is written."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from ttsim_des.errors import bad_input

MANIFEST_SCHEMA: Final = 1
PACKAGES: Final = ("ttsim-des", "simpy", "numpy", "pyarrow", "scipy", "pydantic")


def digest(path: Path) -> str:
    """SHA-256 of a file; of a directory, over its files' names and digests in order of name."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in sorted(item for item in path.rglob("*") if item.is_file() and "__pycache__" not in item.parts):
            whole.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
        return f"sha256:{whole.hexdigest()}"
    with path.open("rb") as file_object:
        return f"sha256:{hashlib.file_digest(file_object, 'sha256').hexdigest()}"


def _version(package: str) -> str:
    """The installed version. `importlib.metadata.version` would parse the whole README behind that line, every time."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        return "unknown"
    lines = (installed.read_text("METADATA") or "").splitlines()
    found = next((line for line in lines if line.startswith("Version: ")), None)
    return installed.version if found is None else found.removeprefix("Version: ")


def make_manifest(
    *,
    seed: int,
    inputs: Mapping[str, Path],
    wall_s: float,
    started: str = "",
    replication: int = 0,
) -> dict[str, Any]:
    """A manifest without the digests of the run's own files, which `rundir.write_run` adds.

    `inputs` names what was read (profile directory, engine file, model file, traces ...); only digests and file names
    are kept, no paths. `started` is the start's date and time as text. Raises InputError for an input that is gone.
    """
    digests: dict[str, dict[str, str]] = {}
    for name, path in sorted(inputs.items()):
        try:
            digests[name] = {"name": path.name, "digest": digest(path)}
        except OSError as error:
            raise bad_input(f"cannot read {name}: {error.strerror}", where=str(path)) from None
    return {
        "schema": MANIFEST_SCHEMA,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "seed": seed,
        "replication": replication,
        "inputs": digests,
        "started": started,
        "wall_s": wall_s,
    }
