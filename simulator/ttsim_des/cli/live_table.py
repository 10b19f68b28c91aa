"""What a sweep has found so far, on stderr while there is somebody watching."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ttsim_des.metrics.flat import in_all
from ttsim_des.report.replicated import HEADLINES
from ttsim_des.report.variants import shortened

if TYPE_CHECKING:
    from rich.table import Table

    from ttsim_des.capacity.task import Content, Task

COLUMNS = ("query latency, mean", "query latency, p95", "output tokens/s", "cost per query")
MOST_ROWS = 20


class LiveTable:
    """Results as they come: a line a point with its means so far, those that changed last at the end."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._asked = Counter(task.variant for task in tasks)
        self._tasks = len(tasks)
        self._names = shortened(self._asked)
        self._runs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self.reused = 0
        self.ran = 0
        self.screen: Any = None

    def update(self, task: Task, content: Content, *, is_new: bool) -> None:
        """Take in one result."""
        if is_new:
            self.ran += 1
        else:
            self.reused += 1
        runs = self._runs.pop(task.variant, [])
        self._runs[task.variant] = [*runs, content]
        if self.screen is not None:
            self.screen.update(self.table())

    def table(self) -> Table:
        """The points of which something is known."""
        from rich.table import Table

        table = Table(title=f"{self.ran + self.reused} of {self._tasks} runs", title_justify="left")
        table.add_column("point", overflow="fold")
        for head in ("runs", *COLUMNS):
            table.add_column(head, justify="right")
        for variant, runs in list(self._runs.items())[-MOST_ROWS:]:
            cells = []
            for label in COLUMNS:
                path, show = HEADLINES[label]
                known = in_all((run["metrics"] for run in runs), path)
                cells.append(show(sum(known) / len(known)) if known else "-")
            table.add_row(self._names[variant], f"{len(runs)}/{self._asked[variant]}", *cells)
        return table


@contextmanager
def live_table(tasks: Sequence[Task]) -> Iterator[LiveTable]:
    """A table that is drawn anew at every result; it only counts when stderr is no terminal."""
    live = LiveTable(tasks)
    if not sys.stderr.isatty():
        yield live
        return
    from rich.console import Console
    from rich.live import Live

    with Live(live.table(), console=Console(stderr=True), transient=True, refresh_per_second=4) as screen:
        live.screen = screen
        yield live
