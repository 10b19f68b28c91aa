"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def scenario_options(function: Function) -> Function:
    """SCENARIO, --set and --seed."""
    for option in (
        click.option("--seed", type=int, help="Seed of all random numbers; overrides the scenario's."),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override any key, e.g. cluster.tp=2; KEY= removes it. May be repeated.",
        ),
        click.argument("scenario"),
    ):
        function = option(function)
    return function


def format_option(function: Function) -> Function:
    """--format table|json."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="What to print on stdout.",
    )(function)
