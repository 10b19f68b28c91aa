"""A grid of scenarios, each point in several replications, in a directory that survives being killed.

    <out>/points/<key>.json      a finished run: its numbers; written aside and renamed, so that it is whole or absent
    <out>/results.csv, results.parquet

The key names all that the numbers depend on (see `task`). So whoever runs the sweep again, changed or not, runs just
what is new, and a file that is there is a result.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ttsim_des.capacity.executors import Executor
from ttsim_des.capacity.task import SCHEMA, Content, Task
from ttsim_des.errors import bad_input


class Progress(Protocol):
    """Called at every result, at those that were there first."""

    def __call__(self, task: Task, content: Content, *, is_new: bool) -> None:
        """`is_new`: it was run, not found."""


def run_sweep(
    tasks: Sequence[Task], out: Path, executor: Executor, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Run what has no result yet, and return the results in the order of the tasks, each with its variant.

    InputError when another process sweeps into this directory; else see `Executor`.
    """
    points = out / "points"
    points.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _clean(points)
        contents: dict[str, Content] = {}
        missing: dict[str, Task] = {}
        for task in tasks:
            found = read_point(points, task.key)
            if found is None:
                missing.setdefault(task.key, task)
            else:
                contents[task.key] = found
                if progress is not None:
                    progress(task, found, is_new=False)
        for task, content in executor.run(list(missing.values())):
            write_point(points, task.key, content)
            contents[task.key] = content
            if progress is not None:
                progress(task, content, is_new=True)
    return [{"variant": list(task.variant), "replication": task.replication, **contents[task.key]} for task in tasks]


def write_point(points: Path, key: str, content: dict[str, Any]) -> None:
    """A result that is there in full, on the disk, or not at all."""
    text = json.dumps(content, allow_nan=False)
    with tempfile.NamedTemporaryFile(
        "w", dir=points, prefix=f".{key}.", suffix=".partial", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, points / f"{key}.json")


def read_point(points: Path, key: str) -> dict[str, Any] | None:
    """A result, or None where there is none or it is not whole (then it is run again)."""
    try:
        content = json.loads((points / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(content, dict) and content.get("schema") == SCHEMA and content.get("key") == key
    return content if is_whole and isinstance(content.get("metrics"), dict) else None


def _clean(points: Path) -> None:
    """Remove what killed workers left half-written; nobody else writes here now."""
    for partial in points.glob(".*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the directory's lock, which the system lets go of when this process dies, however it dies.

    A lock of the process (lockf), not of the open file (flock), which workers would inherit and go on holding.
    """
    with (out / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise bad_input(
                f"another process sweeps into {out}", key="--out", expected="to wait, or a directory of its own"
            ) from None
        yield
