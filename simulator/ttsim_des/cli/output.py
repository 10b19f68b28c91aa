"""Where results go: the run directory's name, and JSON on stdout."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

from ttsim_des.errors import bad_input

RUNS = Path("runs")


def choose_run_directory(out: str | None, name: str) -> Path:
    """The directory to write, which does not exist yet: `out`, or runs/NAME with -2, -3 ... when that is taken.

    Raises `InputError` before anything is simulated when `out` exists or nothing can be written there.
    """
    if out is None:
        candidates = itertools.chain([RUNS / name], (RUNS / f"{name}-{i}" for i in itertools.count(2)))
        directory = next(path for path in candidates if not os.path.lexists(path))
    else:
        directory = Path(out)
    place = f"--out {directory}"
    try:
        if not out and out is not None or "\0" in str(directory):
            raise bad_input("not a directory name", where="--out")
        if os.path.lexists(directory):
            raise bad_input("exists already", where=place, expected="a directory that does not exist yet")
        parent = next(path for path in directory.absolute().parents if path.exists())
    except OSError as error:
        raise bad_input(f"cannot be written: {error.strerror}", where=place) from None
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise bad_input(f"cannot be written: {parent} is not a directory that we may write to", where=place)
    return directory


def summary_json(summary: dict[str, Any]) -> str:
    """A summary as JSON text, one key a line."""
    return json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
