"""A grid of scenarios, each point in several replications, in a directory that survives being killed.

    <out>/points/<key>.json      a finished run: its numbers; written aside and renamed, so that it is whole or absent
    <out>/results.csv, results.parquet

The key is a digest of all that the numbers depend on: the resolved scenario, the contents of every file it reads (a
strategy's source included), the versions of the program and its libraries, and the replication. So whoever runs the
sweep again, changed or not, runs just what is new, and a file that is there is a result.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsim_des.api import input_files, load
from ttsim_des.capacity.frontier import Variant
from ttsim_des.capacity.replications import one_replication
from ttsim_des.errors import NotValidError, bad_input
from ttsim_des.report.manifest import digest, make_manifest

SCHEMA = 1
MOST_TRIES = 3
"""A point whose process dies so often alone is given up: it is the point, not the machine."""
Progress = Callable[["Task", dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One run: a point of the grid in one replication, and the digest of all that its numbers depend on."""

    variant: Variant
    replication: int
    key: str


@dataclass(slots=True)
class Sweep:
    """What is to be run: tasks in the order of the table, and how to run one."""

    scenario: str
    overrides: tuple[str, ...]
    seed: int | None
    tasks: list[Task]
    reused: int = 0
    """Results that were there already."""


def read_points(path: Path) -> list[Variant]:
    """Points from a CSV file whose header names keys; InputError where there are none."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_input(f"these points cannot be read: {error}", where=str(path), expected="a CSV file") from None
    points = []
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise bad_input("not as many cells as the header has", where=f"{path}:{number}")
        points.append(tuple(f"{key}={value}" for key, value in row.items()))
    if not points:
        raise bad_input("there is no point", where=str(path), expected="keys in the header, a point a row")
    return points


def plan_sweep(
    scenario: str, variants: Sequence[Variant], overrides: Sequence[str], seed: int | None, replications: int
) -> Sweep:
    """All tasks of a sweep; InputError where one of the variants cannot be run."""
    tasks = []
    digests: dict[Path, str] = {}
    versions = make_manifest(seed=0, inputs={}, wall_s=0)["versions"]
    for variant in variants:
        loaded = load(scenario, [*overrides, *variant], seed)
        inputs = {name: path for name, path in input_files(loaded).items() if name != "scenario"}
        contents = {}
        for name, path in inputs.items():
            if path not in digests:
                digests[path] = digest(path)
            contents[name] = digests[path]
        stands_for = {"schema": SCHEMA, "scenario": loaded.to_toml(), "inputs": contents, "versions": versions}
        whole = json.dumps(stands_for, sort_keys=True)
        for replication in range(replications):
            key = hashlib.sha256(f"{whole}\n{replication}".encode()).hexdigest()[:32]
            tasks.append(Task(variant, replication, key))
    return Sweep(scenario, tuple(overrides), seed, tasks)


def run_sweep(
    sweep: Sweep, out: Path, workers: int | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Run what has no result yet, and return the results in the order of the tasks.

    A worker that dies costs its tasks another try. InputError when another process sweeps into this directory;
    NotValidError when a point's worker died `MOST_TRIES` times.
    """
    points = out / "points"
    points.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _clean(points)
        missing: dict[str, Task] = {}
        for task in sweep.tasks:
            found = read_point(points, task.key)
            if found is None:
                missing.setdefault(task.key, task)
            else:
                sweep.reused += 1
                if progress is not None:
                    progress(task, found)
        workers = min(os.cpu_count() or 1, len(missing) or 1) if workers is None else workers
        while missing:
            for key in _run_some(sweep, points, missing, workers, progress):
                del missing[key]
        results = []
        for task in sweep.tasks:
            content = read_point(points, task.key)
            assert content is not None, task
            results.append({"variant": list(task.variant), "replication": task.replication, **content})
    return results


def _run_some(
    sweep: Sweep, points: Path, missing: dict[str, Task], workers: int, progress: Progress | None
) -> list[str]:
    """Run tasks until all are done or a worker dies, then those that it may have been; the keys of finished ones."""
    done: list[str] = []
    waiting: dict[Future[dict[str, Any]], Task] = {}
    with ProcessPoolExecutor(workers) as pool:
        todo = iter(list(missing.values()))
        try:
            while True:
                while len(waiting) < 2 * workers and (task := next(todo, None)) is not None:
                    waiting[pool.submit(run_task, sweep.scenario, sweep.overrides, sweep.seed, task, points)] = task
                if not waiting:
                    break
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    content = future.result()
                    task = waiting.pop(future)
                    done.append(task.key)
                    if progress is not None:
                        progress(task, content)
        except BrokenProcessPool:
            pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for task in waiting.values():  # One of these was being run when its worker died.
        content = _run_alone(sweep, points, task)
        done.append(task.key)
        if progress is not None:
            progress(task, content)
    return done


def _run_alone(sweep: Sweep, points: Path, task: Task) -> dict[str, Any]:
    """Run a suspect in a process of its own, so that it takes nobody with it; NotValidError when that dies again."""
    for _ in range(MOST_TRIES):
        if (found := read_point(points, task.key)) is not None:
            return found
        with ProcessPoolExecutor(1) as pool, suppress(BrokenProcessPool):
            return pool.submit(run_task, sweep.scenario, sweep.overrides, sweep.seed, task, points).result()
    text = " ".join(task.variant) or "the scenario as it is"
    raise NotValidError(
        f"the process of {text} (replication {task.replication}) dies every time, {MOST_TRIES} times alone"
    )


def run_task(scenario: str, overrides: tuple[str, ...], seed: int | None, task: Task, points: Path) -> dict[str, Any]:
    """Run one task in this process, write its result and return it."""
    replication = one_replication(scenario, (*overrides, *task.variant), seed, task.replication)
    content = {
        "schema": SCHEMA,
        "key": task.key,
        "is_stable": replication.is_stable,
        "metrics": replication.metrics,
    }
    write_point(points, task.key, content)
    return content


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
    """Hold the directory's lock, which the system lets go of when the process dies, however it dies."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise bad_input(
                f"another process sweeps into {out}", key="--out", expected="to wait, or a directory of its own"
            ) from None
        yield
