"""The importer on a tiny made-up package."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ttsim_des.latency.profile import read_profile

TOOL = Path(__file__).parents[2] / "tools" / "import_aiconfigurator.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_aiconfigurator", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Where dataclasses look up annotations.
    spec.loader.exec_module(module)
    return module


def attention(**more: object) -> dict[str, Any]:
    row: dict[str, Any] = {"device": "GPU", "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "head_dim": 128}
    row |= {"num_heads": 8, "num_key_value_heads": 2, "batch_size": 1, "window_size": 0, "isl": 1, "step": 0}
    return row | {"latency": 0.01} | more


def expert(**more: object) -> dict[str, Any]:
    """Experts of Qwen3-30B-A3B, whole ones shared among 8 ranks."""
    row: dict[str, Any] = {"moe_dtype": "bfloat16", "num_tokens": 1, "hidden_size": 2048, "inter_size": 768}
    row |= {"topk": 8, "num_experts": 128, "moe_tp_size": 1, "moe_ep_size": 8, "distribution": "power_law_1.2"}
    return row | {"latency": 0.04} | more


def test_despike_drops_what_cannot_be_and_averages_repeats(tool: ModuleType) -> None:
    rows = [
        {"mode": "graph", "bytes": size, "latency_us": us}
        for size, us in ((4, 30.0), (1, 5.0), (2, 19.0), (3, 6.0), (3, 8.0))
    ]
    kept, dropped = tool.despike(rows, "bytes", 1.4)
    assert dropped == 1
    assert [(row["bytes"], row["latency_us"]) for row in kept] == [(1, 5.0), (3, 7.0), (4, 30.0)]


def test_units_and_selection(tool: ModuleType) -> None:
    kept = tool.attention_rows(
        [
            attention(step=1023, latency=0.02),
            attention(head_dim=256),
            attention(kv_cache_dtype="fp8"),
            attention(window_size=128),
        ],
        {"bfloat16": "bf16"},
        [128],
        "context",
    )
    assert [(row["context"], row["latency_us"], row["kv_dtype"]) for row in kept] == [(1024, 20.0, "bf16")]
    reduced = tool.all_reduce_rows([{"backend": "vllm_eager", "num_gpus": 2, "message_size": 128, "latency": 0.005}])
    assert reduced == [{"mode": "eager", "ranks": 2, "bytes": 256, "latency_us": 5.0}]


def test_whole_system_becomes_a_profile_that_can_be_read(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Yaml:
        @staticmethod
        def safe_load(text: str) -> Any:
            if text == "versions":
                return {"defaults": {"vllm": {"current": "1.0"}}, "overrides": {"toy": {"vllm": {"current": "0.9"}}}}
            gpu = {"mem_bw": 1e12, "mem_capacity": 80 << 30, "bfloat16_tc_flops": 1e14}
            gpu |= {"mem_bw_empirical_scaling_factor": 0.8, "mem_empirical_constant_latency": 3e-6}
            return {"gpu": gpu, "node": {"intra_node_bw": 1e11}}

    monkeypatch.setitem(sys.modules, "yaml", Yaml)  # type: ignore[arg-type]
    data = tmp_path / "data" / "toy"
    (tmp_path / "query_versions.yaml").write_text("versions")
    (tmp_path / "toy.yaml").write_text("system")
    tables = {
        "gemm/vllm/0.9/gemm_perf": [
            {"device": "GPU", "gemm_dtype": dtype, "m": m, "n": 64, "k": 64, "latency": 0.004}
            for m in (1, 2)
            for dtype in ("bfloat16", "fp8")
        ],
        "attention/vllm/0.9/context_attention_perf": [attention(isl=16), attention(isl=64)],
        "attention/vllm/0.9/generation_attention_perf": [attention(step=1), attention(step=3)],
        "comm/vllm/0.9/custom_allreduce_perf": [
            {"device": "GPU", "backend": f"vllm_{mode}", "num_gpus": 2, "message_size": 64, "latency": 0.005}
            for mode in ("graph", "eager")
        ],
        "moe/vllm/0.8/moe_perf": [expert(), expert(latency=0.05), expert(distribution="balanced")],
        "moe/vllm/1.0/moe_perf": [expert(latency=0.01)],
    }
    for name, rows in tables.items():
        file = data / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    out = tmp_path / "out"
    out.mkdir()
    tool.import_system(tmp_path, "toy", tool.Selection(head_dims=[128]), None, out)
    profile = read_profile(out)
    assert profile.meta.memory_gib == 80
    assert profile.labels("gemm") == ["bf16"]
    assert profile.values("decode_attention", "bf16", "context") == [2, 4]
    assert "vllm 0.9" in profile.meta.source
    assert 'vllm_moe = "0.8"' in (out / "meta.toml").read_text()
    assert profile.select("moe", "bf16", tp=1, ep=8)["latency_us"].tolist() == [40.0]
    shutil.rmtree(data / "moe")
    alone = tmp_path / "alone"
    alone.mkdir()
    tool.import_system(tmp_path, "toy", tool.Selection(head_dims=[128]), None, alone)
    assert read_profile(alone).labels("moe") == []


def test_no_table_of_this_version_or_older(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "0.10.1").mkdir()
    (tmp_path / "0.10.1" / "x.parquet").touch()
    assert tool.nearest_table(tmp_path, "0.24.0", "x.parquet").parent.name == "0.10.1"
    with pytest.raises(SystemExit, match=r"no x\.parquet of version 0\.9 or older"):
        tool.nearest_table(tmp_path, "0.9", "x.parquet")


def test_thinned_points_come_back_within_the_tolerance(tool: ModuleType) -> None:
    curve = [{"m": m, "latency_us": 5.0 + max(0.0, (m - 40) * 0.3) + 0.02 * (m % 3)} for m in range(1, 200)]
    kept = tool.thin_curve(curve, "m", 0.01)
    assert len(kept) < 20
    assert (kept[0], kept[-1]) == (curve[0], curve[-1])
    lines = np.interp([row["m"] for row in curve], [row["m"] for row in kept], [row["latency_us"] for row in kept])
    assert max(abs(line / row["latency_us"] - 1) for line, row in zip(lines, curve, strict=True)) <= 0.01
    labelled = [{"dtype": dtype, **row} for dtype in ("bf16", "fp8") for row in curve]
    assert len(tool.thinned(labelled, "m", 0.01, ["bf16"])) == len(curve) + len(kept)
