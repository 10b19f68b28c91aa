"""What a GPU costs for an hour."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ttsim_des import assets
from ttsim_des.errors import bad_input
from ttsim_des.remembered import remembered
from ttsim_des.scenario.schema import Cluster


def price(cluster: Cluster) -> tuple[float | None, str]:
    """USD per GPU-hour and its source; None when nobody says."""
    if cluster.gpu_hour_usd is not None:
        return cluster.gpu_hour_usd, "scenario"
    path = assets.root("profiles") / "prices.toml"
    try:
        entry = _read(path)["gpus"].get(cluster.gpu)
        return (None, "") if entry is None else (float(entry["gpu_hour_usd"]), f"{entry['source']} ({entry['date']})")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bad_input(f"price file {path} cannot be used: {error}", key="cluster.gpu_hour_usd") from None


@remembered
def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))
