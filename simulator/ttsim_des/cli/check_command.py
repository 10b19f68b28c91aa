"""`ttsim-des check SCENARIO`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ttsim_des.cli.options import format_option, scenario_options
from ttsim_des.errors import InputError, Problem

if TYPE_CHECKING:
    from ttsim_des.deployment import Deployment
    from ttsim_des.scenario.load import Examined
    from ttsim_des.scenario.schema import Scenario
    from ttsim_des.workload.expected import ExpectedWork


@click.command("check")
@scenario_options
@format_option
def command(scenario: str, overrides: tuple[str, ...], seed: int | None, output_format: str) -> None:
    """Say everything that is wrong with SCENARIO at once, or what it would run. Nothing is simulated.

    \b
    Examples:
      ttsim-des check best-of-n
      ttsim-des check my.toml --set cluster.tp=4
    """
    from ttsim_des.report.check import render_check, summarise_check
    from ttsim_des.scenario.load import examine_scenario
    from ttsim_des.scenario.salvage import stand_in

    examined = examine_scenario(scenario, overrides, seed)
    subject = examined.loaded.scenario if examined.loaded is not None else stand_in(examined.parts)
    problems = list(examined.problems)
    deployment = _deployment(examined, subject, problems)
    work = _work(examined, subject, problems)
    if problems or deployment is None or work is None:
        raise examined.source.locate(InputError(problems))
    check = summarise_check(subject, deployment, work)
    if output_format == "json":
        from ttsim_des.report.rundir import to_json

        click.echo(to_json(check), nl=False)
    else:
        click.echo(render_check(check), nl=False)


def _deployment(examined: Examined, subject: Scenario, problems: list[Problem]) -> Deployment | None:
    """What the scenario runs on, unless the tables that say so are wrong by themselves."""
    parts = examined.parts
    if parts.cluster is None or parts.engine is None or parts.latency is None:
        return None
    from ttsim_des.deployment import deploy

    try:
        return deploy(subject, examined.base_dir)
    except InputError as error:
        _add_new(problems, error)
        return None


def _work(examined: Examined, subject: Scenario, problems: list[Problem]) -> ExpectedWork | None:
    """The work that the scenario asks for, unless the tables that say so are wrong by themselves."""
    parts = examined.parts
    if parts.arrivals is None or parts.prompt is None or parts.output is None or parts.strategy is None:
        return None
    from ttsim_des.workload.expected import check_limits, expected_work

    try:
        work = expected_work(subject, examined.base_dir)
        check_limits(work, subject.limits)
    except InputError as error:
        _add_new(problems, error)
        return None
    return work


def _add_new(problems: list[Problem], error: InputError) -> None:
    """A rule about a key may have been broken already in the eyes of the loader: one message a key is enough."""
    known = {problem.key for problem in problems}
    problems += [problem for problem in error.problems if problem.key not in known]
