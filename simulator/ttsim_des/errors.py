"""What can go wrong for a user, as one family of exceptions.

A `Problem` says what is wrong, where, what was expected and what the user may have meant. Code that finds a
problem in a scenario names the *key* (`cluster.tp`); only the scenario loader knows files and lines, and turns
keys into locations. Every exception here can be rebuilt from its `.args`, because SimPy re-raises a failure as
`type(error)(*error.args)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_THRESHOLD = 3
EXIT_NOT_VALID = 4
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input.

    `key` is the dotted scenario key it concerns ("" when none), `where` is "file:line:column" or a file's path
    ("" when not known yet), `expected` says what would be right, `nearest` is the closest valid name.
    """

    message: str
    key: str = ""
    where: str = ""
    expected: str = ""
    nearest: str = ""

    def at(self, where: str) -> Problem:
        """The same problem with its location filled in, unless it has one already."""
        return self if self.where else replace(self, where=where)

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        key = f"{self.key}: " if self.key else ""
        tail = f"; expected {self.expected}" if self.expected else ""
        hint = f" (did you mean {self.nearest!r}?)" if self.nearest else ""
        return f"{head}{key}{self.message}{tail}{hint}"


class TtsimError(Exception):
    """Base of every error meant for the user; `exit_code` is what the command line returns for it."""

    exit_code = EXIT_BAD_INPUT


class InputError(TtsimError):
    """The input is wrong: all problems found in it, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class NotValidError(TtsimError):
    """The run is not valid as asked: an invariant broke, or steady state was asked of a growing queue."""

    exit_code = EXIT_NOT_VALID


def bad_input(message: str, *, key: str = "", where: str = "", expected: str = "", nearest: str = "") -> InputError:
    """An `InputError` with one problem; arguments as in `Problem`."""
    return InputError([Problem(message, key, where, expected, nearest)])


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The valid name closest to `name`, or "" when none is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return matches[0] if matches else ""
