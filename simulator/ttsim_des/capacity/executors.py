"""Where the runs of a sweep are run: an executor takes tasks and hands back results as they come."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from ttsim_des.capacity.task import Content, Task, run_task
from ttsim_des.errors import NotValidError

ORPHAN_AFTER_S = 1.0
MOST_TRIES = 3
"""A task whose process dies so often alone is given up: it is the task, not the machine."""


class Executor(Protocol):
    """Runs tasks; one lives as long as a question, so that its workers stay warm. Close it by leaving its `with`."""

    workers: int
    """How many tasks it runs side by side."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Content]]:
        """Every task with its result, in the order in which they end.

        A worker that dies costs its task another try: NotValidError when it dies `MOST_TRIES` times over the same.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let the workers go; what still runs is given up."""


def gives_up(task: Task) -> NotValidError:
    """The error for a task that kills its workers."""
    return NotValidError(f"the process of {task.label} dies every time, {MOST_TRIES} times alone")


class LocalExecutor:
    """Processes of this machine."""

    def __init__(self, workers: int | None = None) -> None:
        """`workers`: one a core where nothing is said."""
        self.workers = workers or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            self._pool = None

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Content]]:
        """See `Executor`."""
        todo = list(tasks)
        while todo:
            suspects: list[Task] = []
            yield from self._until_one_dies(todo, suspects)
            for task in suspects:
                yield task, _run_alone(task)

    def _until_one_dies(self, todo: list[Task], suspects: list[Task]) -> Iterator[tuple[Task, Content]]:
        """Run `todo` from its front, emptying it; `suspects` gets the tasks that were with a worker that died."""
        if self._pool is None:
            self._pool = _pool(self.workers)
        waiting: dict[Future[Content], Task] = {}
        try:
            while todo or waiting:
                while todo and len(waiting) < 2 * self.workers:
                    waiting[self._pool.submit(run_task, todo[0])] = todo[0]
                    todo.pop(0)
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    content = future.result()
                    yield waiting.pop(future), content
        except BrokenProcessPool:
            self._pool = None
            for future, task in waiting.items():
                if future.exception() is None:
                    yield task, future.result()
                else:
                    suspects.append(task)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_die_with, initargs=(os.getpid(),))


def _die_with(parent: int) -> None:
    """Let this process end soon after its parent, which may be killed without a chance to say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_AFTER_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_alone(task: Task) -> Content:
    """Run a suspect in a process of its own, so that it takes nobody with it."""
    for _ in range(MOST_TRIES):
        with _pool(1) as pool, suppress(BrokenProcessPool):
            return pool.submit(run_task, task).result()
    raise gives_up(task)
