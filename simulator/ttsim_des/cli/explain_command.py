"""`ttsim-des explain RUN --query ID`."""

from __future__ import annotations

import click


@click.command("explain")
@click.argument("run")
@click.option("--query", "query_id", type=click.IntRange(0, 2**63 - 1), required=True, help="Id of the query, from 0.")
def command(run: str, query_id: int) -> None:
    """Tell the life of one query of the run directory RUN: arrival, queueing, prefill, samples, straggler, answer.

    \b
    Example:
      ttsim-des explain runs/best-of-n --query 42
    """
    from pathlib import Path

    from ttsim_des.report.explain import explain
    from ttsim_des.report.rundir import read_run

    click.echo(explain(read_run(Path(run)).tables, query_id), nl=False)
