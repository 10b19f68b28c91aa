"""A progress bar on stderr, for runs that take a while and have somebody watching."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_S = 1.0
REFRESH_S = 0.1

Progress = Callable[[int, int], None]
"""Called with the number of queries done and the number in all, as often as the simulation likes."""


@contextmanager
def progress_bar(queries: int) -> Iterator[Progress | None]:
    """A callback that shows a bar once a run has lasted a second; None when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(queries)
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    """Imports rich and draws only after `PATIENCE_S`."""

    def __init__(self, queries: int) -> None:
        self._queries = queries
        self._next_s = time.monotonic() + PATIENCE_S
        self._bar: Any = None
        self._task: Any = None

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` queries are answered; costs a clock reading when it is too soon to draw."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + REFRESH_S
        if self._bar is None:
            self._open()
        self._bar.update(self._task, completed=done, total=total)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("queries"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=True)
        self._bar.start()
        self._task = self._bar.add_task("queries", total=self._queries)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
