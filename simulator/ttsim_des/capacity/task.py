"""One run of a sweep: what it is, the digest of all that its numbers depend on, and how it is run anywhere.

The key is made of the resolved scenario, the contents of every file it reads (a strategy's source included), the
versions of the program and its libraries, and the replication. Whoever runs a task makes its key again from what *it*
sees, so that a file that was edited meanwhile, or another version on another machine, cannot be taken for the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ttsim_des.api import input_files, load
from ttsim_des.capacity.grid import Variant
from ttsim_des.capacity.replications import replication_of
from ttsim_des.errors import bad_input
from ttsim_des.remembered import remembered
from ttsim_des.report.manifest import digest, make_manifest
from ttsim_des.scenario.load import LoadedScenario
from ttsim_des.scenario.schema import Plan

SCHEMA = 1
Content = dict[str, Any]
"""A result as it is kept: schema, key, is_stable, metrics."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Digests of what the numbers of a point depend on."""

    scenario: str
    files: str
    versions: str

    def key(self, replication: int) -> str:
        """The name of the point's result in one replication."""
        text = "\n".join((str(SCHEMA), self.scenario, self.files, self.versions, str(replication)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Task:
    """One run: a point of a scenario in one replication."""

    scenario: str
    overrides: tuple[str, ...]
    variant: Variant
    seed: int | None
    replication: int
    basis: Basis

    @property
    def key(self) -> str:
        """Equal keys have equal results."""
        return self.basis.key(self.replication)

    @property
    def label(self) -> str:
        """For people."""
        return f"{' '.join(self.variant) or 'the scenario as it is'} (replication {self.replication})"


def tasks_of(
    scenario: str, variants: Sequence[Variant], overrides: Sequence[str], seed: int | None, replications: int
) -> list[Task]:
    """All runs of these points, in the order of the table; InputError where one of them cannot be run."""
    tasks = []
    for variant in variants:
        basis = basis_of(load(scenario, [*overrides, *variant], seed))
        tasks += [
            Task(scenario, tuple(overrides), variant, seed, replication, basis) for replication in range(replications)
        ]
    return tasks


def run_task(task: Task) -> Content:
    """Run a task in this process.

    InputError when what it would read here is not what the sweep was planned with.
    """
    loaded = load(task.scenario, [*task.overrides, *task.variant], task.seed)
    here = basis_of(loaded)
    changed = [part for part in ("scenario", "files", "versions") if getattr(here, part) != getattr(task.basis, part)]
    if changed:
        raise bad_input(
            f"{task.label}: the {' and '.join(changed)} seen by this worker are not those of the sweep",
            where=task.scenario,
            expected="files that stay as they are while a sweep runs, and the same versions on every machine",
        )
    replication = replication_of(loaded, task.replication)
    return {
        "schema": SCHEMA,
        "key": task.key,
        "is_stable": replication.is_stable,
        "metrics": replication.metrics,
    }


def basis_of(loaded: LoadedScenario) -> Basis:
    """Digests of the resolved scenario, of the files that it reads, and of this program's versions."""
    files = {name: _digest(path) for name, path in input_files(loaded).items() if name != "scenario"}
    asked = replace(loaded, scenario=loaded.scenario.model_copy(update={"plan": Plan()}))  # A question changes no run.
    return Basis(_sha(asked.to_toml()), _sha(json.dumps(files, sort_keys=True)), _versions())


@cache
def _versions() -> str:
    return _sha(json.dumps(make_manifest(seed=0, inputs={}, wall_s=0)["versions"], sort_keys=True))


@remembered
def _digest(path: Path) -> str:
    return digest(path)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
