"""Distil GPU profiles from the kernel tables of the PyPI package aiconfigurator-core (Apache-2.0).

    python tools/import_aiconfigurator.py h200_sxm --dtypes bf16,fp8 --memory-gib 139.81 --whole bf16

For each system it reads the tables that the package names as current for the framework, keeps the wanted dtypes and
head sizes and the experts of bundled models, drops spikes, thins what interpolation gives back, and writes one profile
directory (docs/profiles.md). Needs the extra `aiconfigurator`, or `--data DIR` with the package's `systems` folder, and
PyYAML and pyarrow beside it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ttsim_des import assets
from ttsim_des.gpu_profiles.write import SCHEMA, write_table
from ttsim_des.latency.geometry import load_geometry

PACKAGE = "aiconfigurator-core"
DTYPES = {"bf16": "bfloat16", "fp8": "fp8"}
BYTES_PER_ELEMENT = 2  # all-reduce tables are bf16 and count elements
SPIKE_ATTENTION = 1.4
SPIKE_GEMM = 2.0
DISTRIBUTION = "power_law_1.2"
"""How unevenly tokens choose experts: the package's own choice for Qwen and gpt-oss."""
EXPERT_DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8", "w4a16_mxfp4": "mxfp4"}
MOST_RANKS = 8
NAMES = {"rtx_pro_6000_server": "rtx-pro-6000"}
SMS = {
    "a100_sxm": 108,
    "h100_sxm": 132,
    "h200_sxm": 132,
    "b200_sxm": 148,
    "l40s": 142,
    "rtx_pro_6000_server": 188,
}
"""Streaming multiprocessors, from NVIDIA's architecture papers; the package does not say."""

Row = dict[str, Any]
Despiked = tuple[list[Row], int]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are kept: dtypes by their name here, head sizes, dtypes kept whole, and the thinning of the others."""

    framework: str = "vllm"
    dtypes: Sequence[str] = ("bf16",)
    head_dims: Sequence[int] = (64, 128)
    tolerance: float = 0.01
    whole: Sequence[str] = ()


def main() -> None:
    """Write the profiles of the systems named on the command line."""
    parser = argparse.ArgumentParser(description="Distil GPU profiles from aiconfigurator-core.")
    parser.add_argument("systems", nargs="+", help="names in the package, such as h200_sxm")
    parser.add_argument("--framework", default="vllm")
    parser.add_argument("--dtypes", default="bf16", help="comma-separated: bf16, fp8")
    parser.add_argument("--head-dims", default="64,128", help="comma-separated head sizes to keep")
    parser.add_argument("--memory-gib", type=float, help="memory that the driver reports, if not the nominal one")
    parser.add_argument("--thin", type=float, default=0.01, help="drop points that interpolation gives back so closely")
    parser.add_argument("--whole", default="", help="comma-separated dtypes whose products and attention stay whole")
    parser.add_argument("--data", type=Path, help="the package's systems folder, if it is not installed")
    parser.add_argument("--out", type=Path, default=Path("profiles/gpus"))
    arguments = parser.parse_args()
    root = arguments.data or _installed_systems()
    selection = Selection(
        arguments.framework,
        arguments.dtypes.split(","),
        [int(size) for size in arguments.head_dims.split(",")],
        arguments.thin,
        [dtype for dtype in arguments.whole.split(",") if dtype],
    )
    for system in arguments.systems:
        out = arguments.out / NAMES.get(system, system.replace("_", "-"))
        out.mkdir(parents=True, exist_ok=True)
        import_system(root, system, selection, arguments.memory_gib, out)


def import_system(root: Path, system: str, selection: Selection, memory_gib: float | None, out: Path) -> None:
    """Read one system's current tables under `root` and write its profile to `out`."""
    framework = selection.framework
    version = current_version(root, system, framework)
    names = {DTYPES[dtype]: dtype for dtype in selection.dtypes}
    software: dict[str, str] = {}
    rows: dict[str, list[Row]] = {}
    spikes = 0

    def table(family: str, file: str) -> list[Row]:
        path = nearest_table(root / "data" / system / family / framework, version, file)
        software[family] = path.parent.name
        return read(path)

    def keep(family: str, despiked: Despiked, thin: Callable[[list[Row]], list[Row]]) -> None:
        nonlocal spikes
        whole, dropped = despiked
        rows[family] = thin(whole)
        spikes += dropped
        write_table(out / f"{family}.parquet", rows[family])
        print(f"{system}: {family}: {dropped} spikes dropped, {len(rows[family])} of {len(whole)} rows kept")

    def thin(axis: str, whole: Sequence[str] = selection.whole) -> Callable[[list[Row]], list[Row]]:
        return lambda measured: thinned(measured, axis, selection.tolerance, whole)

    gemm = table("gemm", "gemm_perf.parquet")
    keep("gemm", despike(gemm_rows(gemm, names), "m", SPIKE_GEMM), thin("m"))
    for family, file, axis in (
        ("context_attention", "context_attention_perf.parquet", "query"),
        ("decode_attention", "generation_attention_perf.parquet", "context"),
    ):
        measured = attention_rows(table("attention", file), names, selection.head_dims, axis)
        keep(family, despike(measured, axis, SPIKE_ATTENTION), thin(axis))
    reduced = all_reduce_rows(table("comm", "custom_allreduce_perf.parquet"))
    keep("all_reduce", despike(reduced, "bytes", SPIKE_ATTENTION), list)
    if (root / "data" / system / "moe" / framework).is_dir():
        experts = expert_rows(table("moe", "moe_perf.parquet"))
        keep("moe", despike(experts, "tokens", SPIKE_GEMM), thin("tokens", ()))
    spec = importlib.import_module("yaml").safe_load((root / f"{system}.yaml").read_text())
    text = meta_text(system, gemm[0]["device"], selection, version, spec, memory_gib, rows, spikes, software)
    (out / "meta.toml").write_text(text)


def current_version(root: Path, system: str, framework: str) -> str:
    """The version that the package names as current for this system and framework."""
    versions = importlib.import_module("yaml").safe_load((root / "query_versions.yaml").read_text())
    chosen = versions.get("overrides", {}).get(system, {}).get(framework) or versions["defaults"][framework]
    return str(chosen["current"])


def gemm_rows(rows: Iterable[Row], dtypes: dict[str, str]) -> list[Row]:
    """GEMM calls (m, k) x (k, n) of the wanted dtypes."""
    return [
        {"dtype": dtypes[row["gemm_dtype"]], "n": row["n"], "k": row["k"], "m": row["m"], "latency_us": micro(row)}
        for row in rows
        if row["gemm_dtype"] in dtypes
    ]


def attention_rows(rows: Iterable[Row], dtypes: dict[str, str], head_dims: Sequence[int], axis: str) -> list[Row]:
    """Full (not windowed) attention. `axis` is the last column: `query` (a whole prompt) or `context` (decode).

    The package's `step` counts the tokens before the one that is decoded; `context` counts that token too.
    """
    return [
        {
            "kv_dtype": dtypes[row["kv_cache_dtype"]],
            "head_dim": row["head_dim"],
            "kv_heads": row["num_key_value_heads"],
            "heads": row["num_heads"],
            "batch": row["batch_size"],
            axis: row["isl"] if axis == "query" else row["step"] + 1,
            "latency_us": micro(row),
        }
        for row in rows
        if row["kv_cache_dtype"] in dtypes
        and row["attn_dtype"] == "bfloat16"
        and row["head_dim"] in head_dims
        and not row.get("window_size")
    ]


def nearest_table(folder: Path, version: str, file: str) -> Path:
    """The table of this version, else of the newest older one, as the package fills its gaps."""

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    have = sorted((path.parent for path in folder.glob(f"*/{file}")), key=lambda path: number(path.name))
    fit = [path for path in have if number(path.name) <= number(version)]
    if not fit:
        raise SystemExit(f"error: no {file} of version {version} or older under {folder}")
    return fit[-1] / file


def expert_rows(rows: Iterable[Row]) -> list[Row]:
    """Fused experts of the bundled models, sliced or shared whole among up to `MOST_RANKS` ranks.

    Of several kernels for one shape the fastest: the engine picks one by GPU and model, the package does not say which.
    """
    wanted = set()
    for name in assets.names("models"):
        model = load_geometry(name, Path())
        wanted.add((model.hidden, model.expert_intermediate, model.experts, model.experts_per_token))
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        shape = (row["hidden_size"], row["inter_size"], row["num_experts"], row["topk"])
        ranks = (row["moe_tp_size"], row["moe_ep_size"])
        if shape not in wanted or row["moe_dtype"] not in EXPERT_DTYPES or row["distribution"] != DISTRIBUTION:
            continue
        if max(ranks) <= MOST_RANKS and min(ranks) == 1:
            key = (EXPERT_DTYPES[row["moe_dtype"]], *shape, *ranks, row["num_tokens"])
            best[key] = min(best.get(key, float("inf")), micro(row))
    names = ("dtype", "hidden", "intermediate", "experts", "top_k", "tp", "ep", "tokens")
    return [{**dict(zip(names, key, strict=True)), "latency_us": best[key]} for key in sorted(best)]


def thinned(rows: list[Row], axis: str, tolerance: float, whole: Sequence[str]) -> list[Row]:
    """Rows (sorted along `axis`) without those within `tolerance` of the line between the neighbours that are kept."""
    keys = [name for name in rows[0] if name not in (axis, "latency_us")]
    kept: list[Row] = []
    for place, group in groupby(rows, key=lambda row: tuple(row[name] for name in keys)):
        curve = list(group)
        kept += curve if place[0] in whole else thin_curve(curve, axis, tolerance)
    return kept


def thin_curve(curve: list[Row], axis: str, tolerance: float) -> list[Row]:
    """Greedily: from each point kept to the furthest one whose line gives back all between."""
    kept, at = [curve[0]], 0
    while at + 1 < len(curve):
        furthest = at + 1
        for end in range(at + 2, len(curve)):
            low, high = curve[at], curve[end]
            slope = (high["latency_us"] - low["latency_us"]) / (high[axis] - low[axis])
            lines = (
                (low["latency_us"] + slope * (row[axis] - low[axis]), row["latency_us"]) for row in curve[at + 1 : end]
            )
            if all(abs(line / measured - 1) <= tolerance for line, measured in lines):
                furthest = end
            elif end > furthest + 8:
                break
        at = furthest
        kept.append(curve[at])
    return kept


def all_reduce_rows(rows: Iterable[Row]) -> list[Row]:
    """All-reduces inside a CUDA graph and launched eagerly."""
    return [
        {
            "mode": "graph" if row["backend"].endswith("_graph") else "eager",
            "ranks": row["num_gpus"],
            "bytes": row["message_size"] * BYTES_PER_ELEMENT,
            "latency_us": micro(row),
        }
        for row in rows
    ]


def despike(rows: list[Row], axis: str, factor: float) -> tuple[list[Row], int]:
    """Sort; average repeated measurements; drop those above `factor` times the next larger point along `axis`.

    Latency cannot fall that much when the work grows: such a point caught a disturbance. Returns rows and drops.
    """
    keys = [name for name in rows[0] if name not in (axis, "latency_us")]

    def place(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in keys)

    kept: list[Row] = []
    dropped = 0
    for _, curve in groupby(sorted(rows, key=lambda row: (*place(row), row[axis])), key=place):
        points = []
        for _, same in groupby(curve, key=lambda row: row[axis]):
            repeated = list(same)
            mean_us = sum(row["latency_us"] for row in repeated) / len(repeated)
            points.append({**repeated[0], "latency_us": round(mean_us, 3)})
        for index, point in enumerate(points):
            if index + 1 < len(points) and point["latency_us"] > factor * points[index + 1]["latency_us"]:
                dropped += 1
            else:
                kept.append(point)
    return kept, dropped


def micro(row: Row) -> float:
    """Latency in microseconds; the package has milliseconds."""
    return float(row["latency"]) * 1e3


def read(path: Path) -> list[Row]:
    """All rows of a Parquet file."""
    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


def meta_text(
    system: str,
    device: str,
    selection: Selection,
    version: str,
    spec: dict[str, Any],
    memory_gib: float | None,
    rows: dict[str, list[Row]],
    dropped: int,
    software: dict[str, str],
) -> str:
    """The profile's meta.toml."""
    gpu, framework = spec["gpu"], selection.framework

    def span(family: str, column: str) -> str:
        values = [row[column] for row in rows[family]]
        return f"[{min(values)}, {max(values)}]"

    older = "".join(f'\n{framework}_{family} = "{found}"' for family, found in software.items() if found != version)
    peaks = "\n".join(
        f"{name} = {gpu[key]}" for name, key in (("bf16", "bfloat16_tc_flops"), ("fp8", "fp8_tc_flops")) if key in gpu
    )
    return f"""# Written by tools/import_aiconfigurator.py; format: docs/profiles.md.
schema = {SCHEMA}
device = "{device}"
memory_gib = {memory_gib or round(gpu["mem_capacity"] / 2**30, 2)}
bandwidth_bytes_per_s = {gpu["mem_bw"]}
link_bytes_per_s = {spec["node"]["intra_node_bw"]}
source = "PyPI {PACKAGE} {_package_version()}, systems/data/{system}, {framework} {version}, kernels in CUDA graphs"
licence = "Apache-2.0, NVIDIA CORPORATION & AFFILIATES"
# Of the import: the package does not date these tables.
date = "{datetime.date.today().isoformat()}"
spikes_dropped = {dropped}
# Points that the line between the neighbours kept gives back so closely are left out, but for these dtypes.
thinned_within = {selection.tolerance}
kept_whole = [{", ".join(f'"{dtype}"' for dtype in selection.whole)}]

[peak_flops]
{peaks}

[software]
{framework} = "{version}"{older}

[elementwise]
# Not measured: NVIDIA's own rule for element-wise kernels, in the same package.
bandwidth_share = {gpu["mem_bw_empirical_scaling_factor"]}
launch_us = {gpu["mem_empirical_constant_latency"] * 1e6:.1f}
{unequal_text(system)}
[domain]
gemm_m = {span("gemm", "m")}
gemm_n = {span("gemm", "n")}
gemm_k = {span("gemm", "k")}
prefill_query = {span("context_attention", "query")}
decode_batch = {span("decode_attention", "batch")}
decode_context = {span("decode_attention", "context")}
all_reduce_ranks = {span("all_reduce", "ranks")}
all_reduce_bytes = {span("all_reduce", "bytes")}
"""


def unequal_text(system: str) -> str:
    """The table unequal_contexts of a system whose SMs are known; nothing otherwise."""
    if system not in SMS:
        return ""
    return f"""
[unequal_contexts]
# SMs by NVIDIA's data sheet. No batch of unequal contexts was measured: the rate of one block is the default.
sms = {SMS[system]}
"""


def _package_version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "(unpacked)"


def _installed_systems() -> Path:
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "aiconfigurator-core is not installed: pip install 'ttsim-des[aiconfigurator]', or give --data"
        )
    return Path(spec.origin).parent / "systems"


if __name__ == "__main__":
    main()
