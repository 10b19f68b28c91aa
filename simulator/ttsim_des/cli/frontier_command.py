"""`ttsim-des frontier SCENARIO --vary KEY=a,b,c`."""

from __future__ import annotations

import click

from ttsim_des.cli.executor_options import executor_options, make_executor
from ttsim_des.cli.options import scenario_options


@click.command("frontier")
@scenario_options
@click.option("--vary", multiple=True, metavar="KEY=a,b,c", help="Values to try; repeatable, for all combinations.")
@click.option("--points", metavar="FILE", help="A CSV file: its header names keys, each row is a point.")
@click.option("--replications", type=click.IntRange(1, 1000), default=1, show_default=True, help="Of each variant.")
@click.option("--out", metavar="DIR", help="Where results are kept and looked for.  [default: runs/NAME-frontier]")
@executor_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--plot", metavar="FILE", help="Draw accuracy against p95 latency and against cost into this PNG file.")
def command(
    scenario: str,
    vary: tuple[str, ...],
    points: str | None,
    replications: int,
    out: str | None,
    workers: int | None,
    executor: str,
    address: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    as_json: bool,
    plot: str | None,
) -> None:
    """Run variants of SCENARIO and say which are worth their waiting, and which their cost.

    Variants see the same questions and draws. The scenario's outputs must have outcomes (workload.output.distribution =
    "outcomes"), else nobody knows which answers are right.

    \b
    Examples:
      ttsim-des frontier best-of-n-prm --vary workload.strategy.samples=1,4,16
      ttsim-des frontier my.toml --vary cluster.tp=1,2 --vary workload.max_tokens=4096,16384 --plot frontier.png
    """
    import json
    from pathlib import Path

    from ttsim_des.capacity.front import as_rows, frontier
    from ttsim_des.capacity.grid import points_and_grid, read_points
    from ttsim_des.capacity.question import Question
    from ttsim_des.report.frontier_view import draw, text
    from ttsim_des.scenario.load import load_scenario

    if not vary and points is None:
        raise click.UsageError("Nothing to vary: give --vary or --points.")
    variants = points_and_grid(vary, [] if points is None else read_points(Path(points)))
    name = load_scenario(scenario, overrides, seed).scenario.name
    directory = Path(out) if out is not None else Path("runs") / f"{name}-frontier"
    with make_executor(executor, address, workers, len(variants) * replications) as runner:
        question = Question(scenario, overrides, seed, (), replications, directory, runner)
        rows = as_rows(frontier(question, variants))
    if as_json:
        click.echo(json.dumps({"schema": 1, "points": rows}, indent=2, allow_nan=False))
    else:
        click.echo(text(rows), nl=False)
    if plot is not None:
        click.echo(draw(Path(plot), rows, Path(scenario).stem), err=True)
