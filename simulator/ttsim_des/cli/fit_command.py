"""`ttsim-des fit outcomes BANK` and `ttsim-des fit acceptance STEPS`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("fit")
def command() -> None:
    """Fit a model to recorded data, and say how well it stands for it."""


@command.command("outcomes")
@click.argument("bank")
@click.option("--model", help="Only this model's samples.")
@click.option("--dataset", help="Only samples of this data set.")
@click.option(
    "--drop",
    multiple=True,
    metavar="COLUMN=VALUE,...[;COLUMN=VALUE,...]",
    help="Leave out rows that have these values; repeatable.",
)
@click.option("--out", metavar="DIR", help="Write a profile for each model and data set into this folder.")
@click.option("--source", "cited", default="", help="With --out: where the bank comes from, for the profiles.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def outcomes(
    bank: str,
    model: str | None,
    dataset: str | None,
    drop: tuple[str, ...],
    out: str | None,
    cited: str,
    as_json: bool,
) -> None:
    """Turn BANK, a table of samples, into parametric models of outcomes, and compare the two.

    A bank has a row for each sample: problem, output_tokens, correct (0 or 1), answer_id; score, model and dataset
    where there are some.

    \b
    Examples:
      ttsim-des fit outcomes traces/synthetic-bank.csv
      ttsim-des fit outcomes bank.csv --drop 'model=Qwen3;sample=4,5' --out profiles
    """
    import json

    from ttsim_des.errors import bad_input
    from ttsim_des.workload.columns import locate_file
    from ttsim_des.workload.outcomes.bank import read_banks
    from ttsim_des.workload.outcomes.fit_report import fit_bank, text
    from ttsim_des.workload.outcomes.profile import profile_toml

    banks = read_banks(locate_file(bank, Path(), "BANK"), "BANK", [_condition(each) for each in drop])
    wanted = {names: each for names, each in banks.items() if {model, dataset} - {None} <= set(names)}
    if not wanted:
        choices = ", ".join(" ".join(names) for names in banks)
        raise bad_input(f"{bank} has no such samples", key="--model", expected=f"one of {choices}")
    for names, each in wanted.items():
        report = fit_bank(each)
        if as_json:
            rows = [row._asdict() for row in report.rows]
            document = {"names": names, "parameters": report.parameters._asdict(), "rows": rows, "ks": report.ks}
            click.echo(json.dumps({"schema": 1, **document}))
        else:
            click.echo(text(" ".join(names), report))
        if out is not None:
            said = {row.name: f"bank {row.bank:.4g}, model {row.model:.4g}" for row in report.rows}
            title = (*names, "", "")
            path = Path(out) / f"{'-'.join(names).lower() or 'bank'}.toml"
            path.parent.mkdir(parents=True, exist_ok=True)
            origin = f"{cited or Path(bank).name}: {report.problems} problems x {report.samples} samples"
            path.write_text(profile_toml(title[0], title[1], origin, report.parameters, said), encoding="utf-8")
            click.echo(f"written: {path}", err=True)


@command.command("acceptance")
@click.argument("steps")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def acceptance(steps: str, as_json: bool) -> None:
    """Fit acceptance processes to STEPS, a table of recorded steps of speculative decoding.

    A row a step of a request: drafts, accepted; stream (the request) and output_tokens (known before it) where there
    are some. Prints every process by Akaike's criterion, the scenario table of the best one, and how well it fits.

    \b
    Examples:
      ttsim-des fit acceptance traces/draft-model-steps.csv
    """
    import json

    from ttsim_des.speculation.fit import fit_acceptance
    from ttsim_des.speculation.fit_report import as_document, text
    from ttsim_des.speculation.steps import read_steps
    from ttsim_des.workload.columns import locate_file

    fits, goodness = fit_acceptance(read_steps(locate_file(steps, Path(), "STEPS"), "STEPS"))
    click.echo(json.dumps(as_document(fits, goodness)) if as_json else text(fits, goodness), nl=as_json)


def _condition(text: str) -> dict[str, list[str]]:
    from ttsim_des.errors import bad_input

    conditions = {}
    for part in text.split(";"):
        column, equals, values = part.partition("=")
        if not equals:
            raise bad_input(f"{part!r} is no condition", key="--drop", expected="COLUMN=VALUE[,VALUE...]")
        conditions[column.strip()] = values.split(",")
    return conditions
