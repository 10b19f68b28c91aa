"""`ttsim-des graph RUN --out FILE`."""

from __future__ import annotations

import click


@click.command("graph")
@click.argument("run")
@click.option("--out", required=True, metavar="FILE", help="The JSON Lines file to write; must not exist.")
def command(run: str, out: str) -> None:
    """Write the queries of the run directory RUN as graphs that the strategy recorded_graph replays.

    \b
    Example:
      ttsim-des graph runs/beam-search --out beams.jsonl
    """
    from pathlib import Path

    from ttsim_des.errors import bad_input
    from ttsim_des.report.graphs import graph_lines
    from ttsim_des.report.rundir import read_run

    lines = list(graph_lines(read_run(Path(run)).tables))
    try:
        with Path(out).open("x", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise bad_input(f"{out} exists already", key="--out", expected="a new file's name") from None
    except OSError as error:
        raise bad_input(f"{out} cannot be written: {error.strerror}", key="--out") from None
