"""`ttsim-des sweep SCENARIO --vary KEY=a,b,c`."""

from __future__ import annotations

from pathlib import Path

import click

from ttsim_des.cli.executor_options import executor_options, make_executor
from ttsim_des.cli.live_table import live_table
from ttsim_des.cli.options import scenario_options


@click.command("sweep")
@scenario_options
@click.option("--vary", multiple=True, metavar="KEY=a,b,c", help="Values to try; repeatable, for all combinations.")
@click.option("--points", metavar="FILE", help="A CSV file: its header names keys, each row is a point.")
@click.option("--replications", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Of each point.")
@click.option("--out", required=True, metavar="DIR", help="The sweep's directory; one that is there is gone on with.")
@executor_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    scenario: str,
    vary: tuple[str, ...],
    points: str | None,
    replications: int,
    out: str,
    workers: int | None,
    executor: str,
    address: str | None,
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
      ttsim-des sweep best-of-n --vary cluster.tp=1,2 --executor ray --address 10.0.0.1:6379 --out runs/tp
    """
    from ttsim_des.capacity.grid import points_and_grid, read_points
    from ttsim_des.capacity.sweep import run_sweep
    from ttsim_des.capacity.task import tasks_of
    from ttsim_des.report.rundir import to_json
    from ttsim_des.report.sweep_table import render, write_tables

    if not vary and points is None:
        raise click.UsageError("Nothing to vary: give --vary or --points.")
    variants = points_and_grid(vary, [] if points is None else read_points(Path(points)))
    tasks = tasks_of(scenario, variants, overrides, seed, replications)
    directory = Path(out)
    with make_executor(executor, address, workers, len(tasks)) as runner, live_table(tasks) as live:
        results = run_sweep(tasks, directory, runner, live.update)
    write_tables(directory, results)
    if as_json:
        click.echo(to_json({"schema": 1, "reused": live.reused, "results": results}), nl=False)
    else:
        click.echo(render(results), nl=False)
    click.echo(f"{live.ran} runs, {live.reused} found: {directory / 'results.csv'}", err=True)
