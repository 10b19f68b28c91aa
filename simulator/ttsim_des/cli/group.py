"""The command group: commands are imported when they are asked for, and errors become messages and exit codes."""

from __future__ import annotations

import importlib
from typing import Any

import click

from ttsim_des.errors import EXIT_INTERRUPTED, EXIT_NOT_VALID, InputError, TtsimError

COMMANDS = {
    "run": "Simulate a scenario and print what its users would see.",
    "check": "Say what is wrong with a scenario, or what it would run; simulate nothing.",
    "list": "List bundled scenarios, GPUs, models and engines.",
    "explain": "Tell the life of one query of a finished run.",
    "graph": "Write the queries of a finished run as graphs that can be replayed.",
    "figures": "Draw the figures of a finished run.",
    "plan": "Find the cheapest configuration that keeps SLOs, or the largest load that one keeps.",
    "sweep": "Run a scenario at many points, in a directory that can be killed and gone on with.",
    "compare": "Compare two runs: how the scenarios differ, what changed, and whether it is sure.",
    "frontier": "Run variants of a scenario: accuracy against waiting and against cost.",
    "profile": "Look into GPU profiles, compare them, import them from other simulators.",
    "validate": "Replay a recording of a real engine and say how far off the simulation is.",
    "fit": "Fit a model of outcomes to a bank of samples, and say how well it stands for it.",
    "calibrate": "Fit a few named numbers to measurements, report them on others, write them down.",
}
"""Commands with their one-line help, so that `--help` imports none of them."""

EPILOG = """\b
Examples:
  ttsim-des list
  ttsim-des check best-of-n
  ttsim-des run best-of-n --set workload.strategy.samples=16 --seed 7
  ttsim-des explain runs/best-of-n --query 42

\b
Exit codes: 0 done, 2 bad input, 3 a threshold said no, 4 not valid as asked
(queue grows without bound, a law broken), 130 interrupted."""


class LazyGroup(click.Group):
    """A group whose commands live in modules of this package, each imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ttsim_des.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does it, with the nearest command in the message when there is none of that name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from ttsim_des.errors import nearest_name

            nearest = nearest_name(args[0], COMMANDS)
            hint = f" Did you mean {nearest!r}?" if nearest else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a user can put right ends in a message and an exit code, not in a traceback."""
        try:
            return super().invoke(ctx)
        except TtsimError as error:
            print_error(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except MemoryError:
            click.echo("error: not enough memory for this scenario", err=True)
            ctx.exit(EXIT_NOT_VALID)


def print_error(error: TtsimError) -> None:
    """One `error:` line per problem on stderr, then their number when there are several."""
    lines = [str(problem) for problem in error.problems] if isinstance(error, InputError) else [str(error)]
    for line in lines:
        click.echo(f"error: {line}", err=True)
    if len(lines) > 1:
        click.echo(f"{len(lines)} problems", err=True)


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ttsim-des", prog_name="ttsim-des")
def main() -> None:
    """Simulate LLM serving under test-time scaling: latency, throughput and cost before renting a GPU."""
