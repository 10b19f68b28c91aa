"""`ttsim-des plan SCENARIO --slo ...`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttsim_des.cli.executor_options import executor_options, make_executor
from ttsim_des.cli.options import scenario_options

if TYPE_CHECKING:
    from ttsim_des.capacity.grid import Variant
    from ttsim_des.capacity.plan import Choice
    from ttsim_des.capacity.question import Question
    from ttsim_des.scenario.schema import Plan

    Candidates = tuple[list[str], list[Variant]]
    """What --vary says, and points to combine it with."""


@click.command("plan")
@scenario_options
@click.option("--slo", "slos", multiple=True, metavar="SLO", help="E.g. 'query.latency_s.p95 < 60'; repeatable.")
@click.option(
    "--vary", multiple=True, metavar="KEY=a,b,c", help="Candidates: all combinations; a range is KEY=LOW..HIGH."
)
@click.option("--points", metavar="FILE", help="A CSV file of candidates: its header names keys.")
@click.option("--minimise", "objective", metavar="METRIC", help="Choose by this.  [default: cost per query]")
@click.option("--front", is_flag=True, help="Instead: the Pareto front of cost, p95 query latency and accuracy.")
@click.option("--largest-load", is_flag=True, help="Instead: the largest arrival rate that keeps the SLOs.")
@click.option("--replications", type=click.IntRange(2, 1000), help="Of each simulation.  [default: 5]")
@click.option(
    "--resolution",
    type=click.FloatRange(0.001, 1),
    default=0.02,
    show_default=True,
    help="With --largest-load: relative.",
)
@click.option(
    "--trials", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Where ranges are searched."
)
@click.option("--no-pruning", is_flag=True, help="Simulate every candidate that can be deployed.")
@click.option("--out", metavar="DIR", help="Where results are kept and looked for.  [default: runs/NAME-plan]")
@executor_options
@click.option("--plot", metavar="FILE", help="With --front: draw it into this PNG file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(
    scenario: str,
    slos: tuple[str, ...],
    vary: tuple[str, ...],
    points: str | None,
    objective: str | None,
    front: bool,
    largest_load: bool,
    replications: int | None,
    resolution: float,
    trials: int,
    no_pruning: bool,
    out: str | None,
    workers: int | None,
    executor: str,
    address: str | None,
    plot: str | None,
    as_json: bool,
    overrides: tuple[str, ...],
    seed: int | None,
) -> None:
    """Find the cheapest configuration of SCENARIO that keeps SLOs, all that are worth their cost, or the largest load.

    An SLO is kept when the whole 95 % interval over replications keeps it; while that is unclear, up to four times as
    many replications are run. More than two ranges are searched (optuna). What options do not say, the scenario's
    [plan] table may. Exit code 3 when nothing keeps the SLOs.

    \b
    Examples:
      ttsim-des plan best-of-n --slo 'query.latency_s.p95 < 100' --vary cluster.gpu=a100-sxm,h200-sxm
        --vary cluster.replicas=1,2,4
      ttsim-des plan best-of-n --front --vary cluster.gpu=a100-sxm,h200-sxm --vary cluster.tp=1,2,4
      ttsim-des plan best-of-n --slo 'query.latency_s.mean < 60' --largest-load
    """
    from ttsim_des.capacity.question import Question, nobody
    from ttsim_des.capacity.slo import parse_slos
    from ttsim_des.errors import EXIT_THRESHOLD
    from ttsim_des.scenario.load import load_scenario

    if largest_load and (vary or points or objective or no_pruning or front):
        raise click.UsageError(
            "--largest-load is a question of its own: leave --vary, --points, --minimise, --front, --no-pruning out."
        )
    if front and objective:
        raise click.UsageError("--front looks at cost, latency and accuracy: leave --minimise out.")
    if plot is not None and not front:
        raise click.UsageError("--plot draws a front: say --front.")
    asked = load_scenario(scenario, overrides, seed).scenario
    parsed = parse_slos(slos or asked.plan.slos or ())
    if not parsed and not front:
        raise click.UsageError("Nothing to keep: give --slo, or plan.slos in the scenario.")
    directory = Path(out) if out is not None else Path("runs") / f"{asked.name}-plan"
    with make_executor(executor, address, workers) as runner:
        watcher = _show if sys.stderr.isatty() else nobody
        runs = replications or asked.plan.replications or 5
        question = Question(scenario, overrides, seed, parsed, runs, directory, runner, watcher)
        candidates = _candidates(vary, points, asked.plan)
        if largest_load:
            is_found = _largest_load(question, resolution, as_json)
        elif front:
            is_found = _front(question, candidates, as_json, plot, prune=not no_pruning)
        else:
            minimised = objective or asked.plan.minimise or "cost.query_usd"
            chosen = _choose(question, candidates, minimised, trials, asked.seed, prune=not no_pruning)
            is_found = _show_choice(chosen, slos=[str(slo) for slo in parsed], as_json=as_json)
    if not is_found:
        raise SystemExit(EXIT_THRESHOLD)


def _candidates(vary: tuple[str, ...], points: str | None, plan: Plan) -> Candidates:
    """What the options say, else what the scenario says."""
    from ttsim_des.capacity.grid import points_of, read_points

    if vary or points is not None:
        return list(vary), [] if points is None else read_points(Path(points))
    return plan.vary or [], points_of(plan.points or [])


def _choose(
    question: Question, candidates: Candidates, objective: str, trials: int, seed: int, *, prune: bool
) -> Choice:
    """From a grid, or by search where it has too many ranges."""
    from ttsim_des.capacity.grid import axes, needs_search, points_and_grid
    from ttsim_des.capacity.plan import choose

    vary, points = candidates
    free = axes(vary)
    if not needs_search(free):
        return choose(question, points_and_grid(vary, points), objective, prune=prune)
    if not prune:
        raise click.UsageError("--no-pruning tries every candidate, and ranges have no end of them.")
    from ttsim_des.capacity.search import search

    return search(question, free, points, objective, trials=trials, seed=seed)


def _largest_load(question: Question, resolution: float, as_json: bool) -> bool:
    """Find and print the largest load; whether there is one."""
    from ttsim_des.capacity.candidate import Candidate
    from ttsim_des.capacity.load import largest_load
    from ttsim_des.report import plan_view
    from ttsim_des.report.replicated import HEADLINES
    from ttsim_des.report.rundir import to_json

    found = largest_load(question, resolution)
    texts = [str(slo) for slo in question.slos]
    probes = [asdict(probe) for probe in found.probes]
    means = {path: Candidate((), runs=found.runs).value(path) for path, _ in HEADLINES.values()}
    if as_json:
        content = {"schema": 1, "slos": texts, "largest_per_s": found.kept_per_s, "broken_per_s": found.broken_per_s}
        content |= {"best_possible_per_s": found.best_possible_per_s, "probes": probes, "means": means}
        click.echo(to_json(content), nl=False)
    else:
        text = plan_view.load(found.kept_per_s, found.broken_per_s, found.best_possible_per_s, probes, means, texts)
        click.echo(text, nl=False)
    return found.kept_per_s is not None


def _show_choice(chosen: Choice, *, slos: list[str], as_json: bool) -> bool:
    """Print a choice; whether there is one."""
    from ttsim_des.report import plan_view
    from ttsim_des.report.replicated import HEADLINES
    from ttsim_des.report.rundir import to_json

    rows = [
        {
            "variant": list(candidate.variant),
            "state": candidate.state,
            "states": candidate.states,
            "why_not": candidate.why_not,
            "runs_like": candidate.twin or None,
            "gpus": candidate.gpus,
            "bound": candidate.at_least(chosen.objective),
            "offered_share": candidate.offered_share,
            "objective": candidate.value(chosen.objective),
            "means": {path: candidate.value(path) for path, _ in HEADLINES.values()} if candidate.runs else {},
        }
        for candidate in chosen.candidates
    ]
    best = None if chosen.best is None else list(chosen.best.variant)
    if as_json:
        content = {"schema": 1, "slos": slos, "objective": chosen.objective, "best": best}
        click.echo(to_json({**content, "simulated": chosen.simulated, "candidates": rows}), nl=False)
    else:
        click.echo(plan_view.choice(rows, best, slos, chosen.simulated, chosen.objective), nl=False)
    return best is not None


def _front(question: Question, candidates: Candidates, as_json: bool, plot: str | None, *, prune: bool) -> bool:
    """Find and print the front; whether anything is on it."""
    from ttsim_des.capacity.candidate import GPU_SECONDS
    from ttsim_des.capacity.front import as_rows, front
    from ttsim_des.capacity.grid import points_and_grid
    from ttsim_des.capacity.plan import surveyed
    from ttsim_des.report import front_view
    from ttsim_des.report.rundir import to_json

    variants = points_and_grid(*candidates)
    found = front(question, surveyed(question, variants, GPU_SECONDS, prune=prune), prune=prune)
    rows = as_rows(found.points)
    not_run = [
        {"variant": list(candidate.variant), "why_not": candidate.why_not}
        for candidate in found.candidates
        if candidate.why_not
    ]
    slos = [str(slo) for slo in question.slos]
    if as_json:
        content: dict[str, Any] = {"schema": 1, "slos": slos, "points": rows, "left_out": not_run}
        click.echo(to_json(content), nl=False)
    else:
        click.echo(front_view.text(rows, not_run, slos, len(found.candidates)), nl=False)
    if plot is not None:
        click.echo(front_view.draw(Path(plot), rows, Path(question.scenario).stem), err=True)
    return any(row["on_front"] for row in rows)


def _show(text: str) -> None:
    click.echo(f"\r\033[K{text}", nl=False, err=True)
