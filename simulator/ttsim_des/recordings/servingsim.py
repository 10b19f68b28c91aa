"""Recordings of GPU runs in the layout of LLMServingSim 2.0's benchmarks, with their kernel profiles.

    meta.json  requests.jsonl  workload.jsonl  [kernel_profile/meta.yaml, tp*/{dense,per_sequence,attention,skew}.csv]

Traps of the layout: `arrival_time` is on another clock than the other stamps, and `queued_ts` lags behind the true
arrival, because the engine empties its queue between steps; the smallest difference of the two is taken for the
difference of the clocks.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.engine_file import load_engine_file
from ttsim_des.engine.memory import derive_blocks
from ttsim_des.engine.request import PromptSegment
from ttsim_des.errors import bad_input
from ttsim_des.latency.geometry import load_geometry
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.interpolate import Curve, last_slope
from ttsim_des.latency.layers import LayerTables
from ttsim_des.recordings.recording import MeasuredProfile, RecordedRequest, Recording
from ttsim_des.recordings.stream import fit_stream

BLOCK_SIZE = 16
SMS = {"NVIDIA GeForce RTX 4090": 128, "NVIDIA RTX PRO 6000 Blackwell Server Edition": 188}
"""Streaming multiprocessors, from NVIDIA's data sheets; without them unequal contexts cannot be told."""
MEMORY_GIB = {"NVIDIA GeForce RTX 4090": 23.99, "NVIDIA RTX PRO 6000 Blackwell Server Edition": 95.59}
"""As the driver reports it (24,564 and 97,887 MiB)."""
RULES = "vllm-0.19"
"""The engine file whose memory rules derive KV blocks that were not recorded."""
TAIL_OWNERS = 1 << 40
"""Owners of what lies behind a prompt's last full block: beyond all hash ids."""


def is_servingsim(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return (folder / "workload.jsonl").is_file() and (folder / "meta.json").is_file()


def read_servingsim(folder: Path) -> Recording:
    """Read a recording; InputError with the file that is missing or damaged."""
    meta, asked, served = (
        _json(folder / "meta.json"),
        _json_lines(folder / "workload.jsonl"),
        _json_lines(folder / "requests.jsonl"),
    )
    if len(asked) != len(served):
        raise bad_input(
            f"{len(served)} requests, but {len(asked)} lines in workload.jsonl",
            where=str(folder / "requests.jsonl"),
            expected="line i of both to be one request",
        )
    engine: Mapping[str, Any] = meta["engine_kwargs"]
    tp = int(engine.get("tensor_parallel_size", 1))
    profile = _profile(folder / "kernel_profile", tp, str(meta["model"]))
    cache, derived = meta.get("kv_cache") or {}, {}
    block_size = int(cache.get("block_size") or BLOCK_SIZE)
    blocks = cache.get("num_gpu_blocks")
    if blocks is None:
        blocks, derived["num_gpu_blocks"] = _derived_blocks(folder, engine, profile, block_size)
    config = EngineConfig(
        num_gpu_blocks=int(blocks),
        block_size=block_size,
        max_num_seqs=int(engine["max_num_seqs"]),
        max_num_batched_tokens=int(engine["max_num_batched_tokens"]),
        max_model_len=int(engine.get("max_model_len") or 1 << 17),
        free_unhashed_first=False,
    )
    derived["async_scheduling"] = "on: the default of this version on GPUs"
    return Recording(
        name=folder.name,
        engine=f"vllm-{meta['vllm_version']}",
        requests=_requests(asked, served),
        config=config,
        host=HostOverhead(),
        profile=profile,
        derived=derived,
    )


def _derived_blocks(
    folder: Path, engine: Mapping[str, Any], profile: MeasuredProfile | None, block_size: int
) -> tuple[int, str]:
    """KV blocks that the engine's memory rules leave, and how they came about."""
    memory_gib = None if profile is None else MEMORY_GIB.get(profile.gpu)
    if profile is None or memory_gib is None:
        raise bad_input(
            "num_gpu_blocks was not recorded, and the memory of this GPU is unknown",
            where=str(folder / "meta.json"),
            expected='"kv_cache": {"num_gpu_blocks": N}',
        )
    rules = load_engine_file(RULES)
    memory = derive_blocks(
        load_geometry(profile.model.rsplit("/", 1)[-1], Path()),
        rules.memory,
        memory_gib=memory_gib,
        utilization=float(engine.get("gpu_memory_utilization") or rules.defaults.gpu_memory_utilization),
        tp=profile.tp,
        dtype="bf16",
        kv_dtype="bf16",
        block_size=block_size,
        max_num_seqs=int(engine["max_num_seqs"]),
        max_num_batched_tokens=int(engine["max_num_batched_tokens"]),
        num_gpu_blocks=None,
    )
    return memory.num_gpu_blocks, memory.explained(RULES)


def _requests(asked: Sequence[Mapping[str, Any]], served: Sequence[Mapping[str, Any]]) -> list[RecordedRequest]:
    clocks_s = min(row["queued_ts"] - row["arrival_time"] for row in served)
    zero_s = min(row["arrival_time"] for row in served) + clocks_s
    requests = []
    for index, (ask, row) in enumerate(zip(asked, served, strict=True)):
        segments: list[PromptSegment] = [
            (int(owner), (block + 1) * BLOCK_SIZE) for block, owner in enumerate(ask["block16_hash_ids"])
        ]
        if len(segments) * BLOCK_SIZE < row["input_toks"]:
            segments.append((TAIL_OWNERS + index, row["input_toks"]))
        requests.append(
            RecordedRequest(
                name=row["request_id"],
                group=row["request_id"],
                arrival_s=row["arrival_time"] + clocks_s - zero_s,
                first_token_s=row["first_token_ts"] - zero_s,
                finish_s=row["last_token_ts"] - zero_s,
                prompt_tokens=row["input_toks"],
                output_tokens=row["output_toks"],
                prompt=tuple(segments),
            )
        )
    return requests


def _profile(folder: Path, tp: int, model: str) -> MeasuredProfile | None:
    tables = folder / f"tp{tp}"
    if not tables.is_dir():
        return None
    described = dict(
        line.split(": ", 1) for line in (folder / "meta.yaml").read_text(encoding="utf-8").splitlines() if ": " in line
    )
    axes, attention = _attention(tables / "attention.csv")
    gpu, skew = described["gpu"].strip(), tables / "skew.csv"
    stream = None
    if gpu in SMS and skew.is_file():
        kv_heads = load_geometry(model.rsplit("/", 1)[-1], Path()).kv_heads_per_gpu(tp)
        stream = fit_stream(skew, sms=SMS[gpu], kv_heads=kv_heads).rate
    return MeasuredProfile(
        LayerTables(
            _curves(tables / "dense.csv", "tokens"), _curves(tables / "per_sequence.csv", "sequences"), axes, attention
        ),
        gpu=gpu,
        model=model,
        tp=tp,
        stream=stream,
    )


def _curves(path: Path, axis: str) -> dict[str, Curve]:
    points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows(path):
        points[row["layer"]][int(row[axis])].append(float(row["time_us"]))
    curves = {}
    for layer, by_size in points.items():
        sizes = sorted(by_size)
        us = [sum(by_size[size]) / len(by_size[size]) for size in sizes]
        curves[layer] = Curve(tuple(map(float, sizes)), tuple(us), max(0.0, last_slope(sizes[-9::8], us[-9::8])))
    return curves


def _attention(path: Path) -> tuple[tuple[tuple[int, ...], ...], np.ndarray]:
    """The doubling grid of a table, which may hold a second, finer one; points that are missing are extrapolated."""
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    measured: dict[tuple[int, ...], float] = {}
    for row in _rows(path):
        key = tuple(int(row[name]) for name in names)
        if all(value & (value - 1) == 0 for value in key):
            measured[key] = float(row["time_us"])
    axes = tuple(tuple(sorted({key[axis] for key in measured} | {0})) for axis in range(len(names)))
    grid = np.full([len(axis) for axis in axes], np.nan)
    places = [{value: place for place, value in enumerate(axis)} for axis in axes]
    for key, us in measured.items():
        grid[tuple(place[value] for place, value in zip(places, key, strict=True))] = us
    for sequences in range(3, len(axes[2])):  # the largest batches were not measured with long chunks
        low, high = axes[2][sequences - 1], axes[2][sequences]
        lower, here = grid[:, :, sequences - 1], grid[:, :, sequences]
        before = grid[:, :, sequences - 2]
        slope = (lower - before) / (low - axes[2][sequences - 2])
        grid[:, :, sequences] = np.where(np.isnan(here), lower + slope * (high - low), here)
    grid[0, 0, 0, :] = 0.0
    return axes, np.nan_to_num(grid, nan=0.0)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError:
        raise bad_input("this table of the kernel profile cannot be read", where=str(path)) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise bad_input("this file of the recording cannot be read", where=str(path), expected="JSON") from None
    assert isinstance(found, dict)
    return found


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        raise bad_input(
            "this file of the recording cannot be read", where=str(path), expected="a JSON object in every line"
        ) from None
