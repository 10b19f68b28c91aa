"""Vidur's profiles: mlp.csv and attention.csv of a model on a GPU, all_reduce.csv of a network. Milliseconds.

Two prompts at once were not measured, nor lm_head: its time follows from the roofline share of the nearest product.
Half precision is IEEE's there and bf16 here, which no kernel's time tells apart. Prompts on top of a cache are composed
here from whole ones, so rows of chunks are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttsim_des.errors import bad_input
from ttsim_des.gpu_profiles.imported import Imported
from ttsim_des.gpu_profiles.tables import Line, lines_of

TABLES = ("mlp.csv", "attention.csv")
US_PER_MS = 1e3
HALF_BYTES = 2


def read_vidur(folders: Sequence[Path], network: Path | None) -> Imported:
    """The measurements of one or more models' folders and of a network's table; InputError naming what is wrong."""
    imported = Imported("Vidur's profiles: " + ", ".join(str(folder) for folder in folders), "MIT, Microsoft")
    for folder in folders:
        missing = [name for name in TABLES if not (folder / name).is_file()]
        if missing:
            raise bad_input(f"{folder} lacks {' and '.join(missing)}", key="FOLDER", expected=" and ".join(TABLES))
        for line in lines_of(folder / "mlp.csv"):
            _products(imported, line)
        left_out = sum(not _attention(imported, line) for line in lines_of(folder / "attention.csv"))
        if left_out:
            imported.notes.append(f"{left_out} rows of {folder.name}/attention.csv on top of a cache are left out")
    if network is not None:
        for line in lines_of(network):
            _all_reduce(imported, line)
        if imported.rows("all_reduce"):
            imported.notes.append("all-reduces were launched eagerly; they stand for those in CUDA graphs too")
    return imported


def _median_us(line: Line, name: str) -> float:
    return US_PER_MS * line.number(f"time_stats.{name}.median")


def _products(imported: Imported, line: Line) -> None:
    """A row of mlp.csv: all products and element-wise kernels of a layer for some tokens."""
    tp, tokens, hidden = line.whole("num_tensor_parallel_workers"), line.whole("num_tokens"), line.whole("n_embd")
    head_dim = hidden // line.whole("n_head")
    queries = line.whole("n_head") // tp * head_dim
    keys = max(1, line.whole("n_kv_head") // tp) * head_dim
    inner = line.whole("n_expanded_embd") // tp
    wide = (2 if line.text("use_gated_mlp") == "True" else 1) * inner
    for name, n, k in (
        ("attn_pre_proj", queries + 2 * keys, hidden),
        ("attn_post_proj", hidden, queries),
        ("mlp_up_proj", wide, hidden),
        ("mlp_down_proj", hidden, inner),
    ):
        if (latency_us := _median_us(line, name)) > 0:
            imported.add("gemm", latency_us, dtype="bf16", n=n, k=k, m=tokens)
    for name, elements in (("input_layernorm", 2 * hidden), ("add", 3 * hidden), ("mlp_act", wide + inner)):
        if line.has(f"time_stats.{name}.median") and (latency_us := _median_us(line, name)) > 0:
            imported.elementwise.append((float(tokens * elements * HALF_BYTES), latency_us))


def _attention(imported: Imported, line: Line) -> bool:
    """A row of attention.csv, the writing of keys and values included; False when it has no place in the tables."""
    tp = line.whole("num_tensor_parallel_workers")
    heads, kv_heads = line.whole("n_q_head") // tp, max(1, line.whole("n_kv_head") // tp)
    axes: dict[str, int | str] = {
        "kv_dtype": "bf16",
        "head_dim": line.whole("n_embd") // line.whole("n_q_head"),
        "kv_heads": kv_heads,
        "heads": heads,
        "batch": line.whole("batch_size"),
    }
    cached = line.whole("kv_cache_size")
    saved_us = _median_us(line, "attn_kv_cache_save")
    if line.text("is_prefill") == "False":
        imported.add("decode_attention", _median_us(line, "attn_decode") + saved_us, **axes, context=cached + 1)
        return True
    if cached:
        return False
    query = line.whole("prefill_chunk_size")
    imported.add("context_attention", _median_us(line, "attn_prefill") + saved_us, **axes, query=query)
    return True


def _all_reduce(imported: Imported, line: Line) -> None:
    """A row of all_reduce.csv, of the first rank and of groups within one node."""
    ranks = line.whole("num_workers")
    if line.whole("rank") or line.text("collective") != "all_reduce" or ranks > line.whole("max_devices_per_node"):
        return
    for mode in ("graph", "eager"):
        imported.add("all_reduce", _median_us(line, "all_reduce"), mode=mode, ranks=ranks, bytes=line.whole("size"))
