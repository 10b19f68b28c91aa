"""Where the runs of a sweep or a plan are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ttsim_des.capacity.executors import Executor


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --workers, --executor and --address."""
    for option in reversed(
        (
            click.option("--workers", type=click.IntRange(1), help="Processes side by side.  [default: one a core]"),
            click.option(
                "--executor",
                type=click.Choice(("local", "ray")),
                default="local",
                show_default=True,
                help="This machine, or a Ray cluster.",
            ),
            click.option("--address", metavar="HOST:PORT", help="Of the Ray cluster's head, or auto."),
        )
    ):
        command = option(command)
    return command


def make_executor(executor: str, address: str | None, workers: int | None, runs: int | None = None) -> Executor:
    """The executor that was asked for, no larger than `runs`; options that do not belong together are refused."""
    if executor == "ray":
        if address is None or workers is not None:
            raise click.UsageError("--executor ray needs --address and has its own workers: leave --workers out.")
        from ttsim_des.capacity.ray_executor import RayExecutor

        return RayExecutor(address)
    if address is not None:
        raise click.UsageError("--address is that of a Ray cluster: say --executor ray.")
    import os

    from ttsim_des.capacity.executors import LocalExecutor

    return LocalExecutor(workers or min(os.cpu_count() or 1, max(1, runs or 1_000_000)))
