"""`ttsim-des calibrate SOURCE --fit PARAMETER --out FILE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttsim_des.cli.closed_loop_options import closed_loop_options, recipe

if TYPE_CHECKING:
    from ttsim_des.validation.calibrate import Target
    from ttsim_des.validation.closed_loop import Recipe

PARAMETERS = ("kernel_scale", "step_us", "sequence_us", "request_us")


@click.command("calibrate")
@click.argument("sources", nargs=-1, required=True)
@click.option(
    "--fit",
    "names",
    multiple=True,
    required=True,
    metavar="PARAMETER",
    type=click.Choice(PARAMETERS),
    help="kernel_scale, or host time: step_us, sequence_us, request_us; repeatable.",
)
@click.option("--report", "reports", multiple=True, metavar="SOURCE", help="Report on this source too; repeatable.")
@click.option(
    "--report-where",
    multiple=True,
    metavar="COLUMN=VALUE,...",
    help="Closed loop: report on these rows of the sources too; repeatable.",
)
@click.option("--out", required=True, metavar="FILE", help="Where to write the calibration; must not exist.")
@closed_loop_options
def command(
    sources: tuple[str, ...],
    names: tuple[str, ...],
    reports: tuple[str, ...],
    report_where: tuple[str, ...],
    out: str,
    where: tuple[str, ...],
    **of_recipe: Any,
) -> None:
    """Fit a few named numbers to SOURCES, report them on others, and write them with their provenance.

    A SOURCE is a recording's folder, or a CSV file of closed-loop measurements. Simulations use the result when they
    are told to: latency.calibration in a scenario, --calibration of validate.

    \b
    Examples:
      ttsim-des calibrate rtxpro6000-qwen3-32b-tp2 --fit kernel_scale --out pro6000.toml
      ttsim-des calibrate measured.csv --where tp=4 --report-where tp=2 --fit step_us --fit sequence_us --out h100.toml
    """
    from ttsim_des.errors import bad_input
    from ttsim_des.validation.calibrate import fit, write

    if Path(out).exists():
        raise bad_input(f"{out} exists already", key="--out", expected="a new file's name")
    asked = recipe(**of_recipe)
    targets = [_target(source, where, asked) for source in sources]
    others = [_target(source, where, asked) for source in reports]
    if report_where:
        others += [_target(source, report_where, asked) for source in sources if Path(source).is_file()]
    fitted = fit(targets, names)
    reported = {target.name: target.errors(fitted.calibration) for target in others}
    for name, error in fitted.standard_errors.items():
        click.echo(f"{name} = {getattr(fitted.calibration, name):.4g} +- {error:.2g}")
    for title, errors in (
        ("before, fitted on", fitted.before),
        ("after, fitted on", fitted.after),
        ("reported on", reported),
    ):
        for target, values in errors.items():
            click.echo(f"{title} {target}: " + ", ".join(f"{name} {value:+.2f}" for name, value in values.items()))
    used = [Path(source) for source in (*sources, *reports)]
    is_closed_loop = any(path.is_file() for path in used)
    write(
        Path(out),
        fitted,
        command="ttsim-des " + " ".join(sys.argv[1:]),
        sources=used,
        reported=reported,
        recipe=_described(asked) if is_closed_loop else None,
    )
    click.echo(f"written: {out}", err=True)


def _target(source: str, where: tuple[str, ...], asked: Recipe) -> Target:
    from ttsim_des.validation.calibrate import ClosedTarget, RecordingTarget
    from ttsim_des.validation.closed_table import read_table
    from ttsim_des.validation.run import Variant

    path = Path(source)
    if path.is_dir():
        return RecordingTarget(path, Variant())
    name = " ".join((path.name, *where))
    return ClosedTarget(name, read_table(path, where).rows, asked)


def _described(asked: Recipe) -> dict[str, object]:
    from ttsim_des.validation.closed_loop import described

    return described(asked)
