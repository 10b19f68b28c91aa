"""`ttsim-des compare RUN_A RUN_B`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click


@click.command("compare")
@click.argument("first", metavar="RUN_A")
@click.argument("second", metavar="RUN_B")
@click.option(
    "--fail-if",
    "gates",
    multiple=True,
    metavar="GATE",
    help="E.g. 'query.latency_s.p99 > +5%' or 'achieved.queries_per_s < -2%'; exit 3 when it holds.",
)
@click.option(
    "--band",
    "band_pct",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="Changes within it do not matter.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, all metrics, instead of a table.")
def command(first: str, second: str, gates: tuple[str, ...], band_pct: float, as_json: bool) -> None:
    """Compare two run directories: how the scenarios differ, what changed, and whether it is sure.

    Runs of several replications (`run --replications`) give intervals; with one seed they are paired, so that a small
    difference shows.

    \b
    Examples:
      ttsim-des compare runs/before runs/after
      ttsim-des compare runs/before runs/after --fail-if 'query.latency_s.p95 > +5%'
    """
    from ttsim_des.capacity.compare import compare, parse_gates, scenario_changes
    from ttsim_des.errors import EXIT_NOT_VALID, EXIT_THRESHOLD
    from ttsim_des.report.compare_view import text
    from ttsim_des.report.replicated import finite, read_replications
    from ttsim_des.report.rundir import to_json

    parsed = parse_gates(gates)
    one, other = read_replications(Path(first)), read_replications(Path(second))
    paired = one.seed == other.seed and bool(one.rows.keys() & other.rows.keys())
    differences = compare(one.rows, other.rows, is_paired=paired, band_pct=band_pct)
    changes = scenario_changes(one.scenario_toml, other.scenario_toml)
    broken = [message for gate in parsed if (message := gate.broken_by(differences)) is not None]
    rows = {
        name: asdict(row) | {"change_pct": finite(row.change_pct), "half_width_pct": finite(row.half_width_pct)}
        for name, row in differences.items()
    }
    if as_json:
        content = {
            "schema": 1,
            "paired": paired,
            "scenario": {key: list(pair) for key, pair in changes.items()},
            "metrics": rows,
            "broken": broken,
        }
        click.echo(to_json(content), nl=False)
    else:
        counts = (len(one.rows), len(other.rows))
        if paired:
            counts = (len(one.rows.keys() & other.rows.keys()),) * 2
        click.echo(text((Path(first).name, Path(second).name), changes, rows, counts, band_pct), nl=False)
    for message in broken:
        click.echo(f"failed: {message}", err=True)
    for run in (one, other):
        if not run.is_stable:
            click.echo(f"not valid as asked: the queue grows without bound in {run.path}", err=True)
    if broken:
        raise SystemExit(EXIT_THRESHOLD)
    if not (one.is_stable and other.is_stable):
        raise SystemExit(EXIT_NOT_VALID)
