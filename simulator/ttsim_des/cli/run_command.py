"""`ttsim-des run SCENARIO`."""

from __future__ import annotations

import time

import click

from ttsim_des.cli.options import format_option, scenario_options
from ttsim_des.errors import EXIT_NOT_VALID, InputError, NotValidError


@click.command("run")
@scenario_options
@click.option("--out", metavar="DIR", help="Run directory, must not exist; default runs/NAME, or NAME-2, -3 ...")
@format_option
@click.option("--figures", is_flag=True, help="Also draw the figures into the run directory.")
@click.option(
    "--check", "full_check", is_flag=True, help="Check every law on the run's tables; exit 4 if one is broken."
)
@click.option("--replications", type=click.IntRange(1, 100_000), metavar="R", help="Run R independent replications.")
@click.option("--precision", metavar="[METRIC=]2%", help="Add replications until a metric is known so well.")
@click.option(
    "--max-replications",
    type=click.IntRange(2, 100_000),
    default=200,
    show_default=True,
    help="With --precision: at most so many.",
)
def command(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    out: str | None,
    output_format: str,
    figures: bool,
    full_check: bool,
    replications: int | None,
    precision: str | None,
    max_replications: int,
) -> None:
    """Simulate SCENARIO (a file, or a bundled scenario's name) and print its metrics.

    The result goes to stdout and, with the tables behind it, into a run directory; progress, wall time and the
    directory's path go to stderr. With --replications or --precision, means and 95 % intervals over independent
    replications take their place.

    \b
    Examples:
      ttsim-des run best-of-n
      ttsim-des run my.toml --set cluster.replicas=4 --set workload.arrivals.rate_per_s=2
      ttsim-des run my.toml --format json --out runs/tuesday | jq .query.latency_s
      ttsim-des run best-of-n --replications 20
      ttsim-des run best-of-n --precision query.latency_s.p95=3%
    """
    if replications is not None or precision is not None:
        from ttsim_des.cli.replicated import parse_precision, run_replicated

        if figures or full_check:
            raise click.UsageError("--figures and --check are for one run, not for several replications.")
        run_replicated(
            scenario,
            overrides,
            seed,
            count=replications or 1,
            precision=parse_precision(precision, max_replications),
            out=out,
            as_json=output_format == "json",
        )
        return
    _run_once(scenario, overrides, seed, out, as_json=output_format == "json", figures=figures, full_check=full_check)


def _run_once(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    out: str | None,
    *,
    as_json: bool,
    figures: bool,
    full_check: bool,
) -> None:
    """One run: print its metrics, save it; click's Exit or an error where it is not valid."""
    started_s = time.perf_counter()
    from ttsim_des.cli.output import choose_run_directory, short_path
    from ttsim_des.cli.progress import progress_bar
    from ttsim_des.scenario.load import load_scenario

    loaded = load_scenario(scenario, overrides, seed)
    directory = choose_run_directory(out, loaded.scenario.name)

    from ttsim_des import api

    try:
        with progress_bar(loaded.scenario.experiment.queries) as progress:
            result = api.run(loaded, progress=progress)
    except InputError as error:
        raise loaded.locate(error) from None
    broken = result.check_laws() if full_check else []
    result.save(directory, figures=figures)
    if as_json:
        from ttsim_des.report.rundir import to_json

        click.echo(to_json(result.summary), nl=False)
    else:
        from ttsim_des.report.table import render

        click.echo(render(result.summary), nl=False)
    click.echo(f"run directory: {short_path(directory)}  ({time.perf_counter() - started_s:.2f} s)", err=True)
    if broken:
        raise NotValidError("\n".join(["laws broken by this run (please report it):", *broken]))
    if result.summary["stability"]["stable"] is False:
        click.echo("not valid as asked: the queue grows without bound, so there is no steady state", err=True)
        raise click.exceptions.Exit(EXIT_NOT_VALID)
