"""The workers of a Ray cluster (an optional extra: `pip install "ttsim-des[ray]"`).

Tasks travel, files do not: every machine of the cluster sees the same files under the same paths (a shared file system,
or copies) and has the same versions installed. A worker that sees others refuses its task (see `task`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from ttsim_des.capacity.executors import MOST_TRIES, gives_up
from ttsim_des.capacity.task import Content, Task, run_task
from ttsim_des.errors import bad_input

PATIENCE_S = 10.0


class RayExecutor:
    """A cluster that runs already; implements `Executor`."""

    def __init__(self, address: str) -> None:
        """`address`: HOST:PORT of the cluster's head, or "auto" on one of its machines.

        InputError when Ray is not installed or nobody answers there.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Nothing is reported to anybody.
        try:
            import ray
        except ImportError:
            raise bad_input(
                "Ray is not installed", key="--executor", expected='pip install "ttsim-des[ray]", on every machine'
            ) from None
        self._ray: Any = ray
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise bad_input(
                f"no Ray cluster at {address}: {str(error).splitlines()[0]}",
                key="--address",
                expected="HOST:PORT, as `ray start --head` says it, or auto",
            ) from None
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ray.shutdown()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Content]]:
        """See `Executor`; it is Ray that tries again when a worker or its machine is lost."""
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=MOST_TRIES)(run_task)
        todo = list(reversed(tasks))
        waiting: dict[Any, Task] = {}
        while todo or waiting:
            while todo and len(waiting) < 2 * self.workers:
                task = todo.pop()
                waiting[remote.remote(task)] = task
            (reference,), _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(reference)
            try:
                content = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RaySystemError:
                raise
            except ray.exceptions.RayError:
                raise gives_up(task) from None
            yield task, content


def _knock(address: str) -> None:
    """OSError or ValueError at once where nobody answers; Ray itself would try again for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ValueError("not HOST:PORT")
    socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
