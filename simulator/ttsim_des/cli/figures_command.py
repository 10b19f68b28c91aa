"""`ttsim-des figures RUN`."""

from __future__ import annotations

import click


@click.command("figures")
@click.argument("run")
def command(run: str) -> None:
    """Draw the figures of the run directory RUN into it: latency CDFs, and running, waiting and KV use over time.

    \b
    Example:
      ttsim-des figures runs/best-of-n
    """
    from pathlib import Path

    from ttsim_des.report.figures import draw_figures

    for path in draw_figures(Path(run)):
        click.echo(path)
