"""What is measured on: names, versions, clocks. Read, never changed."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active,driver_version"


class Machine(NamedTuple):
    """The device and what runs on it."""

    device: str
    memory_gib: float
    sms: int
    software: dict[str, str]


def machine(torch: Any, device: str) -> Machine:
    """As torch and the operating system say."""
    software = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        software["cuda"] = str(torch.version.cuda)
        software["driver"] = gpu_state().get("driver_version", "unknown")
        return Machine(found.name, found.total_memory / 2**30, found.multi_processor_count, software)
    software["threads"] = str(torch.get_num_threads())
    return Machine(f"CPU {_cpu_name()}", _ram_gib(), os.cpu_count() or 1, software)


def gpu_state() -> dict[str, str]:
    """Clocks, power, temperature and reasons for throttling now; empty where nvidia-smi says nothing."""
    try:
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(QUERY.split(","), (part.strip() for part in text.splitlines()[0].split(",")), strict=False))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _ram_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
