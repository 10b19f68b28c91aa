"""`ttsim-des sweep SCENARIO --vary KEY=a,b,c`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ttsim_des.cli.options import scenario_options


@click.command("sweep")
@scenario_options
@click.option("--vary", multiple=True, metavar="KEY=a,b,c", help="Values to try; repeatable, for all combinations.")
@click.option("--points", metavar="FILE", help="A CSV file instead: its header names keys, each row is a point.")
@click.option("--replications", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Of each point.")
@click.option("--out", required=True, metavar="DIR", help="The sweep's directory; one that is there is gone on with.")
@click.option("--workers", type=click.IntRange(1), help="Processes side by side.  [default: one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    scenario: str,
    vary: tuple[str, ...],
    points: str | None,
    replications: int,
    out: str,
    workers: int | None,
    as_json: bool,
    overrides: tuple[str, ...],
    seed: int | None,
) -> None:
    """Run SCENARIO at many points, in a directory that can be killed, gone on with, and extended.

    A finished run is never run again: results are found by all that they depend on (scenario, files, versions, seed,
    replication). All points see the same draws.

    \b
    Examples:
      ttsim-des sweep best-of-n --vary workload.strategy.samples=1,4,16 --vary cluster.tp=1,2 --out runs/samples
      ttsim-des sweep best-of-n --points points.csv --replications 10 --out runs/points
    """
    from ttsim_des.capacity.frontier import grid
    from ttsim_des.capacity.sweep import plan_sweep, read_points, run_sweep
    from ttsim_des.report.rundir import to_json
    from ttsim_des.report.sweep_table import render, write_tables

    if bool(vary) == (points is not None):
        raise click.UsageError("Give either --vary or --points.")
    variants = grid(vary) if points is None else read_points(Path(points))
    sweep = plan_sweep(scenario, variants, overrides, seed, replications)
    directory = Path(out)
    with _Live(len(sweep.tasks)) as progress:
        results = run_sweep(sweep, directory, workers, progress)
    write_tables(directory, results)
    if as_json:
        click.echo(to_json({"schema": 1, "reused": sweep.reused, "results": results}), nl=False)
    else:
        click.echo(render(results), nl=False)
    ran = len(results) - sweep.reused
    click.echo(f"{ran} runs, {sweep.reused} found: {directory / 'results.csv'}", err=True)


class _Live:
    """Counts on stderr while there is somebody watching."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def __enter__(self) -> Any:
        return self._advance if sys.stderr.isatty() else None

    def __exit__(self, *_: object) -> None:
        if self._done:
            click.echo(err=True)

    def _advance(self, task: Any, _: Any) -> None:
        self._done += 1
        text = " ".join(task.variant)
        click.echo(
            f"\r\033[K{self._done} of {self._total}: {text} (replication {task.replication})", nl=False, err=True
        )
