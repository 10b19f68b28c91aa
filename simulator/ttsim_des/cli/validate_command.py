"""`ttsim-des validate RECORDING`, and `ttsim-des validate --closed-loop TABLE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ttsim_des.cli.closed_loop_options import closed_loop_options, recipe

if TYPE_CHECKING:
    from ttsim_des.latency.calibration import Calibration
    from ttsim_des.validation.closed_loop import Recipe
    from ttsim_des.validation.run import Variant

TERMS = ("unequal_contexts", "mixed_attention", "chunk_areas", "all_reduce", "graph_padding", "sampler")


@click.command("validate")
@click.argument("recording", required=False)
@click.option("--closed-loop", metavar="TABLE", help="Compare with closed-loop measurements in this CSV file instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--fail-if", "gates", multiple=True, metavar="GATE", help="E.g. 'e2e_s.mean > 2%'; exit 3 when it holds.")
@click.option(
    "--without", multiple=True, metavar="TERM", type=click.Choice(TERMS), help="Switch a correction off; repeatable."
)
@click.option("--calibration", metavar="FILE", help="Use fitted numbers that `ttsim-des calibrate` wrote.")
@click.option("--synchronous", is_flag=True, help="Schedule synchronously, whatever the recorded engine did.")
@click.option("--no-prefix-caching", is_flag=True, help="Without prefix caching, whatever the recorded engine had.")
@click.option("--steps-from", metavar="DIR", help="Fit step times to the steps of this recording.")
@click.option(
    "--forced",
    type=click.Choice(["durations", "schedule"]),
    help="Take recorded step durations (only the scheduler can err) or the recorded schedule (only step times can).",
)
@click.option("--link-latency-us", type=float, default=20.0, show_default=True, help="Of one all-reduce between ranks.")
@click.option("--link-gb-per-s", type=float, default=16.0, show_default=True, help="Of one all-reduce between ranks.")
@click.option("--figures", metavar="DIR", help="Draw CDF pairs and a per-request scatter into this folder.")
@closed_loop_options
def command(
    recording: str | None,
    closed_loop: str | None,
    as_json: bool,
    gates: tuple[str, ...],
    without: tuple[str, ...],
    calibration: str | None,
    synchronous: bool,
    no_prefix_caching: bool,
    steps_from: str | None,
    forced: Literal["durations", "schedule"] | None,
    link_latency_us: float,
    link_gb_per_s: float,
    figures: str | None,
    where: tuple[str, ...],
    **of_recipe: Any,
) -> None:
    """Replay RECORDING, a run of a real engine, and say how far off the simulation is.

    Both sides are measured from the true arrival of each request. Without --steps-from, step times come from the kernel
    profile beside the recording, or from the formula of a golden one.

    With --closed-loop, simulate every row of a table of measured means (model, system, tensor parallelism,
    concurrency, lengths) with a bundled GPU profile, under a stated recipe.

    \b
    Examples:
      ttsim-des validate tests/recorded/vllm_cpu/golden/fanout16
      ttsim-des validate rtxpro6000-qwen3-32b-tp2 --without all_reduce --json
      ttsim-des validate --closed-loop measured.csv --where tp=2,4
    """
    from ttsim_des.errors import EXIT_THRESHOLD
    from ttsim_des.latency.calibration import UNFITTED, read_calibration
    from ttsim_des.latency.layers import Link, Terms
    from ttsim_des.validation.gates import parse_gates
    from ttsim_des.validation.run import Variant

    parsed = parse_gates(gates)
    fitted = UNFITTED if calibration is None else read_calibration(Path(calibration))
    if (recording is None) == (closed_loop is None):
        raise click.UsageError("Give either a RECORDING or --closed-loop TABLE.")
    if closed_loop is not None:
        asked = recipe(**of_recipe)
        asked = replace(
            asked,
            calibration=fitted,
            unequal_contexts=False if "unequal_contexts" in without else None,
            async_scheduling=False if synchronous else None,
        )
        compared = [_closed_loop(Path(closed_loop), where, asked, calibration, as_json)]
    else:
        assert recording is not None
        variant = Variant(
            terms=Terms(**dict.fromkeys(without, False)),
            link=Link(link_latency_us, link_gb_per_s * 1e9),
            synchronous=synchronous,
            no_prefix_caching=no_prefix_caching,
            steps_from=None if steps_from is None else Path(steps_from),
            forced=forced,
            calibration=fitted,
        )
        compared = _recordings(Path(recording), variant, as_json, figures)
    broken = [f"{name}: {what}" for name, metrics in compared for gate in parsed if (what := gate.broken_by(metrics))]
    for what in broken:
        click.echo(what, err=True)
    if broken:
        raise SystemExit(EXIT_THRESHOLD)


_Compared = tuple[str, Mapping[str, Mapping[str, Any]]]


def _recordings(folder: Path, variant: Variant, as_json: bool, figures: str | None) -> list[_Compared]:
    from ttsim_des.validation.report import table
    from ttsim_des.validation.run import validate

    compared: list[_Compared] = []
    for result in validate(folder, variant):
        if as_json:
            _print_json(recording=result.name, metrics=result.metrics, parameters=result.parameters)
        else:
            click.echo(table(result.name, result.metrics, result.parameters))
        if figures is not None and result.replayed is not None:
            from ttsim_des.report.validation_figures import draw

            for path in draw(Path(figures), result.name, result.recording, result.replayed):
                click.echo(path, err=True)
        compared.append((result.name, result.metrics))
    return compared


def _closed_loop(
    path: Path, where: tuple[str, ...], asked: Recipe, calibration: str | None, as_json: bool
) -> _Compared:
    from ttsim_des.validation.closed_loop import described, rows_of, simulate_rows, summarise
    from ttsim_des.validation.closed_table import read_table
    from ttsim_des.validation.report import closed_table

    measured = read_table(path, where)
    results = simulate_rows(measured.rows, asked)
    metrics, rows, parameters = summarise(results), rows_of(results), described(asked)
    if calibration is not None:
        parameters["calibration"] = _flat(asked.calibration, calibration)
    if as_json:
        _print_json(
            table=path.name, metrics=metrics, parameters=parameters, rows=rows, not_simulated=dict(measured.skipped)
        )
    else:
        click.echo(closed_table(rows, measured.skipped, metrics, parameters))
    return path.name, metrics


def _flat(fitted: Calibration, name: str) -> str:
    values = ", ".join(f"{key} {value:g}" for key, value in fitted._asdict().items() if value is not None)
    return f"{name} ({values})"


def _print_json(**document: Any) -> None:
    import json

    click.echo(json.dumps({"schema": 1, **document}, indent=2, allow_nan=False))
