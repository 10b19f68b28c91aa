"""`ttsim-des frontier SCENARIO --vary KEY=a,b,c`."""

from __future__ import annotations

import click

from ttsim_des.cli.options import scenario_options


@click.command("frontier")
@scenario_options
@click.option(
    "--vary", multiple=True, required=True, metavar="KEY=a,b,c", help="Values to try; repeatable, for all combinations."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--plot", metavar="FILE", help="Draw accuracy against p95 latency and against cost into this PNG file.")
def command(
    scenario: str, vary: tuple[str, ...], overrides: tuple[str, ...], seed: int | None, as_json: bool, plot: str | None
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

    from ttsim_des.capacity.frontier import as_rows, frontier
    from ttsim_des.report.frontier_view import draw, text

    rows = as_rows(frontier(scenario, vary, overrides, seed))
    if as_json:
        click.echo(json.dumps({"schema": 1, "points": rows}, indent=2, allow_nan=False))
    else:
        click.echo(text(rows), nl=False)
    if plot is not None:
        click.echo(draw(Path(plot), rows, Path(scenario).stem), err=True)
