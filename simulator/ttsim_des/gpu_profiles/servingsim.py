"""LLMServingSim 2.0's kernel profiles: meta.yaml and tp*/{dense,per_sequence,attention,skew}.csv. Microseconds.

Layers are those of one model, so its geometry tells which product each one is. Mixed batches and chunks on top of a
cache are composed here from prompts and decodes, so those rows are left out. There is no communication in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttsim_des.errors import bad_input
from ttsim_des.gpu_profiles.imported import Imported
from ttsim_des.gpu_profiles.tables import lines_of
from ttsim_des.latency.geometry import ModelGeometry, load_geometry
from ttsim_des.recordings.stream import fit_stream

HALF_BYTES = 2


def read_servingsim(folders: Sequence[Path], model: str | None, sms: int | None) -> Imported:
    """The measurements of one or more profile folders of one GPU; InputError naming what is wrong.

    `model`: a bundled geometry's name or a file, where the one that meta.yaml names is not bundled. `sms`: streaming
    multiprocessors, without which unequal contexts cannot be fitted.
    """
    imported = Imported("LLMServingSim's kernel profiles: " + ", ".join(map(str, folders)), "MIT, LLMServingSim")
    for folder in folders:
        described = _described(folder / "meta.yaml")
        if imported.device and imported.device != described["gpu"]:
            raise bad_input(
                f"{folder} is of {described['gpu']}, not of {imported.device}", key="FOLDER", expected="one GPU"
            )
        imported.device = described["gpu"]
        if "vllm_version" in described:
            imported.software["vllm"] = described["vllm_version"]
        geometry = load_geometry(model or described["model"].rsplit("/", 1)[-1], Path())
        degrees = sorted(folder.glob("tp*"), key=lambda path: int(path.name[2:]))
        if not degrees:
            raise bad_input(f"{folder} has no tp1, tp2, ... folders", key="FOLDER")
        for tables in degrees:
            tp = int(tables.name[2:])
            _layers(imported, tables, geometry, tp)
            _attention(imported, tables / "attention.csv", geometry, tp)
            if sms is not None and imported.stream is None and (tables / "skew.csv").is_file():
                token_bytes = 2 * HALF_BYTES * geometry.head_dim
                fitted = fit_stream(
                    tables / "skew.csv", sms=sms, kv_heads=geometry.kv_heads_per_gpu(tp), token_bytes=token_bytes
                )
                imported.stream = fitted.rate
    return imported


def _described(path: Path) -> dict[str, str]:
    """The plain top-level entries of a YAML file; InputError without gpu and model."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise bad_input(f"{path} cannot be read", key="FOLDER", expected="an LLMServingSim kernel profile") from None
    split = (line.split(": ", 1) for line in lines if ": " in line and not line.startswith(" "))
    found = {key: value.strip().strip("'\"") for key, value in split}
    for name in ("gpu", "model"):
        if name not in found:
            raise bad_input(f"{path} does not name the {name}", key="FOLDER")
    return found


def _layers(imported: Imported, tables: Path, geometry: ModelGeometry, tp: int) -> None:
    """Products and element-wise kernels by tokens; lm_head by sequences."""
    hidden = geometry.hidden
    queries = geometry.heads_per_gpu(tp) * geometry.head_dim
    keys = geometry.kv_heads_per_gpu(tp) * geometry.head_dim
    inner = -(-geometry.intermediate // tp)
    products = {
        "qkv_proj": (queries + 2 * keys, hidden),
        "o_proj": (hidden, queries),
        "gate_up_proj": (2 * inner, hidden),
        "down_proj": (hidden, inner),
        "lm_head": (geometry.vocab_per_gpu(tp), hidden),
    }
    moved = {"layernorm": 4 * hidden, "final_layernorm": 4 * hidden, "act_fn": 3 * inner}
    for file, axis in (("dense.csv", "tokens"), ("per_sequence.csv", "sequences")):
        for line in lines_of(tables / file):
            layer, size, latency_us = line.text("layer"), line.whole(axis), line.number("time_us")
            if layer in products:
                n, k = products[layer]
                imported.add("gemm", latency_us, dtype="bf16", n=n, k=k, m=size)
            elif layer in moved:
                imported.elementwise.append((float(HALF_BYTES * moved[layer] * size), latency_us))


def _attention(imported: Imported, path: Path, geometry: ModelGeometry, tp: int) -> None:
    axes: dict[str, int | str] = {
        "kv_dtype": "bf16",
        "head_dim": geometry.head_dim,
        "kv_heads": geometry.kv_heads_per_gpu(tp),
        "heads": geometry.heads_per_gpu(tp),
    }
    left_out = 0
    for line in lines_of(path):
        chunk, before, decodes = (line.whole(name) for name in ("prefill_chunk", "kv_prefill", "n_decode"))
        latency_us = line.number("time_us")
        if decodes and not chunk:
            context = line.whole("kv_decode")
            imported.add("decode_attention", latency_us, **axes, batch=decodes, context=context)
        elif chunk and not decodes and not before:
            imported.add("context_attention", latency_us, **axes, batch=1, query=chunk)
        else:
            left_out += 1
    imported.notes.append(
        f"{left_out} rows of {path.parent.name}/{path.name}, mixed or on top of a cache, are left out"
    )
