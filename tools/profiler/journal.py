"""What has been measured, a line a point, written at once: an interrupt loses nothing and nothing is measured twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from profiler.points import Point
from profiler.timer import Measured


class Journal:
    """`measurements.jsonl` of one profile: a line on the machine and the settings, then a line a point."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Go on with the file, if there is one made on this machine with these settings.

        A last line that an interrupt cut short is dropped. Raises SystemExit (2) when the file is of another machine.
        """
        self.path = path
        self.found: dict[str, Measured] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        complete = []
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                if number + 1 < len(lines):
                    raise SystemExit(f"error: {path}:{number + 1}: is not JSON; --restart measures anew") from None
                break
            complete.append(line)
            if not number:
                self._compare(entry, header)
            else:
                self.found[json.dumps(entry["point"])] = Measured(*entry["measured"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(complete) != len(lines) or not lines:
            text = "".join(f"{line}\n" for line in complete) if complete else json.dumps(header) + "\n"
            path.write_text(text, encoding="utf-8")
        self.resumed = len(self.found)
        self._file = path.open("a", encoding="utf-8")

    def add(self, point: Point, measured: Measured) -> None:
        """Keep a point, on disk too."""
        self.found[point.key()] = measured
        entry = {"point": json.loads(point.key()), "measured": [*(round(each, 5) for each in measured)]}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def get(self, point: Point) -> Measured | None:
        """What was measured at a point."""
        return self.found.get(point.key())

    def points(self) -> list[tuple[Point, Measured]]:
        """Everything measured, in the order of measuring."""
        return [
            (Point(family, tuple(axes.items())), self.found[key])
            for key in self.found
            for family, axes in [json.loads(key)]
        ]

    def close(self) -> None:
        """Nothing more will be added."""
        self._file.close()

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for name, value in new.items():
            if old.get(name) != value:
                raise SystemExit(
                    f"error: {self.path} was measured with {name} = {old.get(name)!r}, this is {value!r}; "
                    f"expected the same, another --out, or --restart"
                )
