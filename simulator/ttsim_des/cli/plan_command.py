"""`ttsim-des plan SCENARIO --slo ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttsim_des.cli.options import scenario_options

if TYPE_CHECKING:
    from ttsim_des.capacity.frontier import Variant
    from ttsim_des.capacity.slo import Slo

    Asked = tuple[list[Slo], tuple[str, ...], int | None, Path]
    """SLOs, overrides, seed, directory."""


@click.command("plan")
@scenario_options
@click.option(
    "--slo", "slos", multiple=True, required=True, metavar="SLO", help="E.g. 'query.latency_s.p95 < 60'; repeatable."
)
@click.option("--vary", multiple=True, metavar="KEY=a,b,c", help="Candidates: all combinations; repeatable.")
@click.option("--minimise", "objective", metavar="METRIC", help="Choose by this.  [default: cost per query]")
@click.option("--largest-load", is_flag=True, help="Instead: the largest arrival rate that keeps the SLOs.")
@click.option("--replications", type=click.IntRange(2, 1000), default=5, show_default=True, help="Of each simulation.")
@click.option(
    "--resolution",
    type=click.FloatRange(0.001, 1),
    default=0.02,
    show_default=True,
    help="With --largest-load: relative.",
)
@click.option("--no-pruning", is_flag=True, help="Simulate every candidate that can be deployed.")
@click.option("--out", metavar="DIR", help="Where results are kept and looked for.  [default: runs/NAME-plan]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(
    scenario: str,
    slos: tuple[str, ...],
    vary: tuple[str, ...],
    objective: str | None,
    largest_load: bool,
    replications: int,
    resolution: float,
    no_pruning: bool,
    out: str | None,
    as_json: bool,
    overrides: tuple[str, ...],
    seed: int | None,
) -> None:
    """Find the cheapest configuration of SCENARIO that keeps SLOs, or the largest load that it keeps.

    An SLO is kept when the whole 95 % interval over replications keeps it; while that is unclear, up to four times as
    many replications are run. Exit code 3 when nothing keeps them all.

    \b
    Examples:
      ttsim-des plan best-of-n --slo 'query.latency_s.p95 < 100' --vary cluster.gpu=a100-sxm,h200-sxm
        --vary cluster.replicas=1,2,4
      ttsim-des plan best-of-n --slo 'query.latency_s.mean < 60' --largest-load
    """
    from ttsim_des.capacity.frontier import grid
    from ttsim_des.capacity.slo import parse_slos
    from ttsim_des.errors import EXIT_THRESHOLD
    from ttsim_des.scenario.load import load_scenario

    if largest_load and (vary or objective or no_pruning):
        raise click.UsageError("--largest-load is a question of its own: leave --vary, --minimise, --no-pruning out.")
    parsed = parse_slos(slos)
    name = load_scenario(scenario, overrides, seed).scenario.name
    directory = Path(out) if out is not None else Path("runs") / f"{name}-plan"
    asked = (parsed, overrides, seed, directory)
    common = {"replications": replications, "progress": _show if sys.stderr.isatty() else _ignore}
    if largest_load:
        is_found = _largest_load(scenario, asked, as_json, resolution=resolution, **common)
    else:
        is_found = _cheapest(scenario, grid(vary), asked, objective, as_json, prune=not no_pruning, **common)
    if not is_found:
        raise SystemExit(EXIT_THRESHOLD)


def _largest_load(scenario: str, asked: Asked, as_json: bool, **how: Any) -> bool:
    """Find and print the largest load; whether there is one."""
    from ttsim_des.capacity import plan
    from ttsim_des.report import plan_view
    from ttsim_des.report.replicated import HEADLINES
    from ttsim_des.report.rundir import to_json

    found = plan.largest_load(scenario, *asked, **how)
    texts = [str(slo) for slo in asked[0]]
    probes = [asdict(probe) for probe in found.probes]
    means = {path: plan.Candidate((), runs=found.runs).mean(path) for path, _ in HEADLINES.values()}
    if as_json:
        content = {"schema": 1, "slos": texts, "largest_per_s": found.kept_per_s, "broken_per_s": found.broken_per_s}
        content |= {"best_possible_per_s": found.best_possible_per_s, "probes": probes, "means": means}
        click.echo(to_json(content), nl=False)
    else:
        text = plan_view.load(found.kept_per_s, found.broken_per_s, found.best_possible_per_s, probes, means, texts)
        click.echo(text, nl=False)
    return found.kept_per_s is not None


def _cheapest(
    scenario: str, variants: Sequence[Variant], asked: Asked, objective: str | None, as_json: bool, **how: Any
) -> bool:
    """Choose and print a configuration; whether there is one that keeps the SLOs."""
    from ttsim_des.capacity import plan
    from ttsim_des.report import plan_view
    from ttsim_des.report.replicated import HEADLINES
    from ttsim_des.report.rundir import to_json

    chosen = plan.choose(scenario, variants, *asked, objective=objective or plan.USD, **how)
    texts = [str(slo) for slo in asked[0]]
    rows = [
        {
            "variant": list(candidate.variant),
            "state": candidate.state,
            "states": candidate.states,
            "why_not": candidate.why_not,
            "gpus": candidate.gpus,
            "bound": candidate.bound,
            "offered_share": candidate.offered_share,
            "objective": candidate.mean(chosen.objective),
            "means": {path: candidate.mean(path) for path, _ in HEADLINES.values()} if candidate.runs else {},
        }
        for candidate in chosen.candidates
    ]
    best = None if chosen.best is None else list(chosen.best.variant)
    if as_json:
        content = {"schema": 1, "slos": texts, "objective": chosen.objective, "best": best}
        click.echo(to_json({**content, "simulated": chosen.simulated, "candidates": rows}), nl=False)
    else:
        click.echo(plan_view.choice(rows, best, texts, chosen.simulated, chosen.objective), nl=False)
    return best is not None


def _show(text: str) -> None:
    click.echo(f"\r\033[K{text}", nl=False, err=True)


def _ignore(_: str) -> None:
    """Nobody watches."""
