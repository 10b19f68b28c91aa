"""`ttsim-des figures RUN`."""

from __future__ import annotations

import click


@click.command("figures")
@click.argument("run")
def command(run: str) -> None:
    """Draw the figures of the run directory RUN into it: latency CDFs, and running, waiting and KV use over time.

    Load over time needs the tables of a run made with --set output.steps=true.

    \b
    Example:
      ttsim-des figures runs/best-of-n
    """
    from pathlib import Path

    from ttsim_des.errors import bad_input
    from ttsim_des.report.figures import draw
    from ttsim_des.report.rundir import read_run

    saved = read_run(Path(run))
    try:
        drawn = draw(Path(run) / "figures", summary=saved.summary, tables=saved.tables, has_steps=saved.has_steps)
    except OSError as error:
        raise bad_input(f"cannot write figures: {error.strerror}", where=run) from None
    for path in drawn.paths:
        click.echo(path)
    for reason in drawn.missing:
        click.echo(f"left out: {reason}", err=True)
