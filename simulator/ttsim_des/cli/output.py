"""Where a run's results go."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from ttsim_des.errors import bad_input

RUNS = Path("runs")


def choose_run_directory(out: str | None, name: str) -> Path:
    """The directory to write, which does not exist yet: `out`, or runs/NAME with -2, -3 ... when that is taken.

    Raises `InputError` before anything is simulated when `out` exists or nothing can be written there.
    """
    from ttsim_des.report.rundir import require_free

    if out is None:
        candidates = itertools.chain([RUNS / name], (RUNS / f"{name}-{i}" for i in itertools.count(2)))
        directory = next(path for path in candidates if not os.path.lexists(path))
    else:
        directory = Path(out)
    try:
        require_free(directory)
    except (OSError, ValueError) as error:  # a name too long for the file system, a folder that may not be read
        reason = getattr(error, "strerror", None) or str(error)
        raise bad_input(f"cannot be written: {reason}", key="--out", where=str(directory)[:200]) from None
    return directory


def short_path(directory: Path) -> str:
    """A path as people type it: from here, where it lies below."""
    try:
        return str(directory.relative_to(Path.cwd()))
    except ValueError:
        return str(directory)
