"""Files that are read once a process: a plan asks for the same few profiles thousands of times."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MOST = 64
"""Values kept by each reader; beyond, it starts anew."""


def remembered(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """`read`, which is not called again for a file, or a directory of files, that has not changed since.

    Changed: another size or time of modification. What `read` returns must never be altered; errors are not kept.
    """
    kept: dict[tuple[object, ...], T] = {}

    @wraps(read)
    def reader(path: Path) -> T:
        key = _state(path)
        if key not in kept:
            value = read(path)
            if len(kept) >= MOST:
                kept.clear()
            kept[key] = value
        return kept[key]

    return reader


def _state(path: Path) -> tuple[object, ...]:
    """Absolute path, sizes and times of modification."""
    absolute = path.absolute()
    try:
        files = sorted(absolute.iterdir()) if absolute.is_dir() else [absolute]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return (absolute, object())  # `read` says what is wrong, and nothing is remembered under this key
    return (absolute, *((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats))
