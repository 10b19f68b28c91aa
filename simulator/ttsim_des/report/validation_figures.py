"""Figures of a validation: measured and simulated distributions, requests one by one, and load over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttsim_des.recordings.recording import Recording
from ttsim_des.report.curves import cdf
from ttsim_des.report.figures import save, set_up
from ttsim_des.units import ns_to_s
from ttsim_des.validation.compare import Values, latencies
from ttsim_des.validation.replay import Replayed

TITLES = {"ttft_s": "Time to first token", "tpot_s": "Time per output token", "e2e_s": "Request, end to end"}


def draw(folder: Path, name: str, recording: Recording, replayed: Replayed) -> list[Path]:
    """Draw into `folder` (made if need be); the files are named after the recording."""
    folder.mkdir(parents=True, exist_ok=True)
    set_up()
    stem = name.replace("/", "-")
    measured, simulated = latencies(recording, replayed)
    return [
        save(folder / f"{stem}-cdf.png", lambda: _cdfs(name, measured, simulated)),
        save(folder / f"{stem}-requests.png", lambda: _requests(name, measured["e2e_s"], simulated["e2e_s"])),
        save(folder / f"{stem}-load.png", lambda: _load(name, recording, replayed)),
    ]


def _cdfs(name: str, measured: dict[str, Values], simulated: dict[str, Values]) -> Any:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(TITLES), figsize=(15, 4.5), layout="constrained")
    for panel, (metric, title) in zip(panels, TITLES.items(), strict=True):
        for label, side, style in (("measured", measured, "-"), ("simulated", simulated, "--")):
            values, shares = cdf(side[metric])
            panel.plot(values, shares, style, drawstyle="steps-post", label=label, linewidth=2)
        panel.set(title=title, xlabel="seconds", ylim=(0, 1.01), xlim=(0, None))
    panels[0].set_ylabel("share of requests")
    panels[-1].legend(loc="lower right")
    figure.suptitle(name)
    return figure


def _requests(name: str, measured: Values, simulated: Values) -> Any:
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(6, 6), layout="constrained")
    top = 1.05 * float(max(measured.max(), simulated.max()))
    panel.plot((0, top), (0, top), color="0.6", linewidth=1, zorder=1)
    panel.scatter(measured, simulated, s=12, alpha=0.7, zorder=2)
    panel.set(
        title=name, xlabel="measured end to end, s", ylabel="simulated end to end, s", xlim=(0, top), ylim=(0, top)
    )
    return figure


def _load(name: str, recording: Recording, replayed: Replayed) -> Any:
    """Requests in the system (arrived, not finished) and those that have a first token, both sides."""
    import matplotlib.pyplot as plt

    rows, done = recording.requests, replayed.requests
    sides = {
        "measured": (
            [row.arrival_s for row in rows],
            [row.first_token_s for row in rows],
            [row.finish_s for row in rows],
        ),
        "simulated": (
            [ns_to_s(request.arrival_ns) for request in done],
            [ns_to_s(request.first_token_ns) for request in done],
            [ns_to_s(request.last_token_ns) for request in done],
        ),
    }
    figure, panels = plt.subplots(2, 1, figsize=(11, 6), sharex=True, layout="constrained")
    for label, (arrival, first, finish) in sides.items():
        style = "-" if label == "measured" else "--"
        for panel, start, end in ((panels[0], first, finish), (panels[1], arrival, first)):
            panel.plot(*_count(start, end), style, drawstyle="steps-post", label=label)
    panels[0].set(title=name, ylabel="producing tokens", ylim=(0, None))
    panels[1].set(xlabel="seconds", ylabel="without a token yet", ylim=(0, None))
    panels[0].legend(loc="upper right")
    return figure


def _count(start: Sequence[float], end: Sequence[float]) -> tuple[Values, Values]:
    """How many are between their start and their end, at each moment that this changes."""
    times = np.concatenate((start, end))
    change = np.concatenate((np.ones(len(start)), -np.ones(len(end))))
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(change[order])
