"""`ttsim-des plan SCENARIO --slo ...`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ttsim_des.cli.options import scenario_options


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
    from ttsim_des.capacity import plan
    from ttsim_des.capacity.frontier import grid
    from ttsim_des.capacity.slo import parse_slos
    from ttsim_des.errors import EXIT_THRESHOLD
    from ttsim_des.report import plan_view
    from ttsim_des.report.replicated import HEADLINES
    from ttsim_des.report.rundir import to_json
    from ttsim_des.scenario.load import load_scenario

    if largest_load and (vary or objective or no_pruning):
        raise click.UsageError("--largest-load is a question of its own: leave --vary, --minimise, --no-pruning out.")
    parsed = parse_slos(slos)
    name = load_scenario(scenario, overrides, seed).scenario.name
    directory = Path(out) if out is not None else Path("runs") / f"{name}-plan"
    progress = _show if sys.stderr.isatty() else _ignore
    texts = [str(slo) for slo in parsed]
    if largest_load:
        found = plan.largest_load(
            scenario,
            parsed,
            overrides,
            seed,
            directory,
            replications=replications,
            resolution=resolution,
            progress=progress,
        )
        probes = [asdict(probe) for probe in found.probes]
        means = {path: plan.Candidate((), runs=found.runs).mean(path) for path, _ in HEADLINES.values()}
        if as_json:
            content = {
                "schema": 1,
                "slos": texts,
                "largest_per_s": found.kept_per_s,
                "broken_per_s": found.broken_per_s,
            }
            content |= {"best_possible_per_s": found.best_possible_per_s, "probes": probes, "means": means}
            click.echo(to_json(content), nl=False)
        else:
            text = plan_view.load(found.kept_per_s, found.broken_per_s, found.best_possible_per_s, probes, means, texts)
            click.echo(text, nl=False)
        if found.kept_per_s is None:
            raise SystemExit(EXIT_THRESHOLD)
        return
    chosen = plan.choose(
        scenario,
        grid(vary),
        parsed,
        overrides,
        seed,
        directory,
        objective=objective or plan.USD,
        replications=replications,
        prune=not no_pruning,
        progress=progress,
    )
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
    if best is None:
        raise SystemExit(EXIT_THRESHOLD)


def _show(text: str) -> None:
    click.echo(f"\r\033[K{text}", nl=False, err=True)


def _ignore(_: str) -> None:
    """Nobody watches."""
