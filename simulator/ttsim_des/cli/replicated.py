"""`ttsim-des run --replications R`, `--precision`: several worlds of one scenario."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ttsim_des.errors import EXIT_NOT_VALID, InputError, bad_input

if TYPE_CHECKING:
    from ttsim_des.capacity.replications import Precision

_PRECISION = re.compile(r"^\s*(?:(?P<metric>[a-z0-9_.]+)\s*=\s*)?(?P<percent>\d+(?:\.\d+)?)\s*%\s*$")
DEFAULT_METRIC = "query.latency_s.mean"


def parse_precision(text: str | None, most: int) -> Precision | None:
    """`2%` of the mean query latency, or `METRIC=2%`."""
    from ttsim_des.capacity.replications import Precision

    if text is None:
        return None
    match = _PRECISION.match(text)
    if match is None or not float(match["percent"]):
        raise bad_input(
            f"{text!r} is no precision", key="--precision", expected="2%, or METRIC=2%, such as query.latency_s.p95=2%"
        )
    return Precision(match["metric"] or DEFAULT_METRIC, float(match["percent"]) / 100, most)


def run_replicated(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    *,
    count: int,
    precision: Precision | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Run replications side by side, print intervals, write the run directory; exit code 4 for a growing queue."""
    started, clock_s = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    from ttsim_des.api import input_files
    from ttsim_des.capacity.replications import intervals, replicate, warmup_advice
    from ttsim_des.cli.output import choose_run_directory, short_path
    from ttsim_des.cli.progress import progress_bar
    from ttsim_des.report.manifest import make_manifest
    from ttsim_des.report.replicated import finite, render, write_replicated
    from ttsim_des.report.rundir import to_json
    from ttsim_des.scenario.load import load_scenario

    loaded = load_scenario(scenario, overrides, seed)
    directory = choose_run_directory(out, loaded.scenario.name)
    try:
        with progress_bar(count) as bar:
            advance = None if bar is None else lambda done: bar(done, max(done, count))
            found = replicate(scenario, overrides, seed, count=count, precision=precision, progress=advance)
    except InputError as error:
        raise loaded.locate(error) from None
    known = intervals(found)
    shown = {name: asdict(interval) | {"half_width": finite(interval.half_width)} for name, interval in known.items()}
    unstable = sum(not replication.is_stable for replication in found)
    steady = loaded.scenario.experiment.kind == "steady"
    advice: dict[str, Any] = {
        "warmup_fraction": loaded.scenario.experiment.warmup_fraction if steady else None,
        "mser5_fraction": warmup_advice(found) if steady else None,
        "unstable_replications": unstable,
    }
    if precision is not None:
        interval = known.get(precision.metric)
        reached = interval is not None and interval.relative <= precision.share
        advice["precision"] = {"metric": precision.metric, "share": precision.share, "reached": reached}
    wall_s = time.perf_counter() - clock_s
    write_replicated(
        directory,
        rows=[(replication.number, replication.is_stable, replication.metrics) for replication in found],
        intervals=shown,
        advice=advice,
        scenario_toml=loaded.to_toml(),
        manifest=make_manifest(
            seed=loaded.scenario.seed, inputs=input_files(loaded), wall_s=wall_s, started=started, replication=0
        ),
    )
    if as_json:
        content = {"schema": 1, "replications": len(found), **advice, "intervals": shown}
        click.echo(to_json(content), nl=False)
    else:
        click.echo(render(loaded.scenario.name, shown, len(found), advice), nl=False)
    click.echo(f"run directory: {short_path(directory)}  ({wall_s:.2f} s)", err=True)
    if unstable:
        click.echo("not valid as asked: the queue grows without bound, so there is no steady state", err=True)
        raise click.exceptions.Exit(EXIT_NOT_VALID)
