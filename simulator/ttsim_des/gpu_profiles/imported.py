"""What an importer makes of somebody else's tables, and the profile directory that comes of it."""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ttsim_des.errors import bad_input
from ttsim_des.gpu_profiles.write import SCHEMA, Row, best_line, replace_file, write_tables
from ttsim_des.latency.profile import COLUMNS, GpuMeta, read_profile
from ttsim_des.latency.unequal import StreamRate

TABLES = ("gemm", "context_attention", "decode_attention", "all_reduce")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a data sheet says of a GPU; kernel tables do not."""

    memory_gib: float
    bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    sms: int | None = None

    @classmethod
    def like(cls, meta: GpuMeta) -> Hardware:
        """That of a GPU that has a profile."""
        return cls(meta.memory_gib, meta.bandwidth_bytes_per_s, meta.peak_flops, meta.kv_stream.sms)


@dataclass(slots=True)
class Imported:
    """Measurements gathered from tables; repeated ones are averaged."""

    source: str
    licence: str
    device: str = ""
    software: dict[str, str] = field(default_factory=dict)
    elementwise: list[tuple[float, float]] = field(default_factory=list)
    """(bytes moved, microseconds) of norms, activations and the like."""
    stream: StreamRate | None = None
    notes: list[str] = field(default_factory=list)
    """What was left out or assumed, for meta.toml."""
    _times: dict[str, dict[tuple[int | str, ...], list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def add(self, family: str, latency_us: float, **axes: int | str) -> None:
        """One measurement of a family, its axes by column."""
        key = tuple(axes[name] for name in COLUMNS[family][:-1])
        self._times[family][key].append(latency_us)

    def rows(self, family: str) -> list[Row]:
        """The family's table."""
        names = COLUMNS[family]
        return [
            dict(zip(names, (*key, sum(times) / len(times)), strict=True))
            for key, times in sorted(self._times[family].items())
        ]


def add_link(imported: Imported, latency_us: float, gb_per_s: float, ranks: Iterable[int]) -> None:
    """All-reduces of a link that is stated, not measured: a latency and bytes at a rate."""
    for size in (1 << power for power in range(8, 31)):
        for mode in ("graph", "eager"):
            for number in ranks:
                us = latency_us + size / gb_per_s / 1e3
                imported.add("all_reduce", us, mode=mode, ranks=number, bytes=size)
    imported.notes.append(f"all-reduce stated, not measured: {latency_us} us + bytes / {gb_per_s} GB/s")


def write_imported(out: Path, imported: Imported, hardware: Hardware) -> None:
    """Write the profile to a directory that does not exist yet, and read it back; InputError otherwise."""
    if out.exists():
        raise bad_input(f"{out} exists already", key="--out", expected="a new directory's name")
    for family in ("gemm", "context_attention", "decode_attention"):
        if not imported.rows(family):
            raise bad_input(f"these tables have nothing for {family}.parquet", where=imported.source)
    share, launch_us, note = 0.8, 3.0, "Not measured: NVIDIA's own rule for element-wise kernels (aiconfigurator-core)."
    if len(imported.elementwise) > 1:
        launch_us, per_byte_us, (median, worst) = best_line(imported.elementwise)
        share = min(1.0, 1e6 / per_byte_us / hardware.bandwidth_bytes_per_s)
        note = f"Fitted to norms and activations: median error {median:.0%}, largest {worst:.0%}."
    out.mkdir(parents=True)
    spans = write_tables(out, {family: imported.rows(family) for family in TABLES})
    lines = [
        "# Written by `ttsim-des profile import`; format: docs/profiles.md.",
        *(f"# {line}." for line in imported.notes),
        f"schema = {SCHEMA}",
        f"device = {json.dumps(imported.device)}",
        "# Memory, bandwidth and peaks as told to the importer; the tables do not say.",
        f"memory_gib = {hardware.memory_gib}",
        f"bandwidth_bytes_per_s = {hardware.bandwidth_bytes_per_s:.6g}",
        f"source = {json.dumps(imported.source)}",
        f"licence = {json.dumps(imported.licence)}",
        "# Of the import.",
        f'date = "{datetime.date.today().isoformat()}"',
        "",
        "[peak_flops]",
        *(f"{dtype} = {peak:.6g}" for dtype, peak in hardware.peak_flops.items()),
        "",
        "[software]",
        *(f"{name} = {json.dumps(version)}" for name, version in imported.software.items()),
        "",
        "[elementwise]",
        f"# {note}",
        f"bandwidth_share = {share:.3g}",
        f"launch_us = {launch_us:.3g}",
    ]
    if hardware.sms is not None:
        lines += ["", "[unequal_contexts]", f"sms = {hardware.sms}"]
        if imported.stream is not None:
            lines.append(f"stream_bytes_per_s = {imported.stream.bytes_per_s:.4g}")
    lines += ["", "[domain]", *(f"{name} = {span}" for name, span in spans.items()), ""]
    replace_file(out / "meta.toml", "\n".join(lines).encode())
    read_profile(out)
