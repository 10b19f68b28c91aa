"""What the commands that record have in common: the options of a load, and how a command ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ttsim_des.errors import EXIT_INTERRUPTED, InputError


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is and takes options by their whole names only."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """How much of the load is sent, how fast, and with which tokens."""
    parser.add_argument("--limit", type=int, help="send only so many queries")
    parser.add_argument("--speed", type=float, default=1.0, help="divide the times between arrivals")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts' tokens")


def run(record: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Record; bad input and an interrupt become a line on stderr and an exit code."""
    try:
        return record(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
