"""Other simulators' kernel tables become profiles that can be simulated with."""

import csv
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ttsim_des.cli import main
from ttsim_des.latency.profile import read_profile

HARDWARE = ("--memory-gib", "80", "--bandwidth-gb-per-s", "2000", "--peak-tflops", "300")
HIDDEN, HEADS, KV_HEADS, INNER = 1024, 16, 8, 3072
"""Qwen3-0.6B but for its head size, which Vidur derives."""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["profile", *arguments])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def product_us(m: int, n: int, k: int) -> float:
    return 2.0 + n * k * 2 / 2e6 + m * n * k * 2 / 3e8


def vidur(folder: Path, *, tps: tuple[int, ...] = (1, 2)) -> Path:
    """A model's folder in Vidur's layout."""
    shared = {"n_head": HEADS, "n_kv_head": KV_HEADS, "n_embd": HIDDEN, "n_expanded_embd": INNER}
    dense, attention = [], []
    for tp in tps:
        queries, keys = HIDDEN // tp, HIDDEN // HEADS * KV_HEADS // tp
        for m in (1, 8, 64, 512, 4096):
            times = {
                "attn_pre_proj": product_us(m, queries + 2 * keys, HIDDEN),
                "attn_post_proj": product_us(m, HIDDEN, queries),
                "mlp_up_proj": product_us(m, 2 * INNER // tp, HIDDEN),
                "mlp_down_proj": product_us(m, HIDDEN, INNER // tp),
                "input_layernorm": 3 + m * 2 * HIDDEN * 2 / 1e6,
                "add": 3 + m * 3 * HIDDEN * 2 / 1e6,
                "mlp_act": 3 + m * 3 * (INNER // tp) * 2 / 1e6,
            }
            stats = {f"time_stats.{name}.median": us / 1e3 for name, us in times.items()}
            more = {"use_gated_mlp": True, "num_tokens": m, "num_tensor_parallel_workers": tp, "vocab_size": 32000}
            dense += [{**stats, **shared, **more}] * 2  # Vidur repeats sizes.
        for batch, size in ((1, 64), (1, 4096), (32, 64), (32, 4096)):
            decode = {"attn_decode": 0.005 + batch * size / 1e6, "attn_prefill": 0.0, "attn_kv_cache_save": 0.002}
            prompt = {"attn_decode": 0.0, "attn_prefill": 0.01 + size * size / 1e8, "attn_kv_cache_save": 0.002}
            common = {"n_embd": HIDDEN, "n_q_head": HEADS, "n_kv_head": KV_HEADS, "num_tensor_parallel_workers": tp}
            for times, cached, chunk in ((decode, size, 0), (prompt, 0, size), (prompt, 128, size)):
                if batch > 1 and chunk:
                    continue
                stats = {f"time_stats.{name}.median": ms for name, ms in times.items()}
                place = {"batch_size": batch, "kv_cache_size": cached, "prefill_chunk_size": chunk}
                attention.append({**stats, **common, **place, "is_prefill": chunk > 0})
    write(folder / "mlp.csv", dense)
    write(folder / "attention.csv", attention)
    return folder


def network(path: Path) -> Path:
    rows = []
    for ranks, rank, size in ((2, 0, 1024), (2, 0, 1 << 20), (2, 1, 1024), (16, 0, 1024)):
        common = {"num_workers": ranks, "size": size, "collective": "all_reduce", "max_devices_per_node": 8}
        rows.append({"time_stats.all_reduce.median": 0.01 * (1 + rank), "rank": rank, **common})
    write(path, rows)
    return path


def servingsim(folder: Path, *, gpu: str = "Some GPU", model: str = "Qwen/Qwen3-0.6B") -> Path:
    """A kernel profile in LLMServingSim's layout, of a model with heads of 128."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.yaml").write_text(f"vllm_version: 0.19.0\ngpu: {gpu}\nmodel: {model}\nnested:\n  model: other\n")
    shapes = {"qkv_proj": (4096, 1024), "o_proj": (1024, 2048), "gate_up_proj": (6144, 1024), "down_proj": (1024, 3072)}
    dense = [
        {"layer": layer, "tokens": m, "time_us": product_us(m, n, k)}
        for layer, (n, k) in shapes.items()
        for m in (1, 16, 256, 2048)
    ]
    dense += [{"layer": "layernorm", "tokens": m, "time_us": 2 + m * 4096 * 2 / 1e6} for m in (1, 2048)]
    heads = [{"layer": "lm_head", "sequences": m, "time_us": product_us(m, 151936, 1024)} for m in (1, 256)]
    attention = [(0, 0, n, c, 5 + n * c / 1e3) for n in (1, 16, 256) for c in (16, 16384)]
    attention += [(q, 0, 0, 0, 8 + q * q / 1e5) for q in (16, 2048)] + [(64, 64, 4, 128, 9.0), (64, 64, 0, 0, 9.0)]
    write(folder / "tp1" / "dense.csv", dense)
    write(folder / "tp1" / "per_sequence.csv", heads)
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    write(folder / "tp1" / "attention.csv", [dict(zip(names, row, strict=True)) for row in attention])
    skew = [
        {"regime": "pure", "n": n, "kv_mean": 4096, "kv_big": 16384, "t_mean_us": 3 * n * 4.0, "t_skew_us": 3 * n * 5.0}
        for n in (64, 128, 256)
    ]
    write(folder / "tp1" / "skew.csv", skew)
    return folder


def test_vidur(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    source, reduced = vidur(tmp_path / "model"), network(tmp_path / "all_reduce.csv")
    told = invoke(
        "import", "vidur", str(source), "--network", str(reduced), "--device", "A", "--out", str(out), *HARDWARE
    )
    assert told.exit_code == 0, told.output
    assert "4 rows of model/attention.csv on top of a cache are left out" in told.output
    profile = read_profile(out)
    rows = profile.select("gemm", "bf16", n=2 * INNER, k=HIDDEN)
    assert rows["m"].tolist() == [1, 8, 64, 512, 4096]
    assert rows["latency_us"].tolist() == pytest.approx([product_us(m, 2 * INNER, HIDDEN) for m in rows["m"].tolist()])
    decode = profile.select("decode_attention", "bf16", heads=8, kv_heads=4, head_dim=64, batch=32)
    assert decode["context"].tolist() == [65, 4097]
    assert decode["latency_us"].tolist() == pytest.approx([7 + 32 * 64 / 1e3, 7 + 32 * 4096 / 1e3])
    assert profile.values("all_reduce", "graph", "bytes", ranks=2) == [1024, 1 << 20]
    assert profile.values("all_reduce", "eager", "ranks") == [2]
    assert profile.meta.elementwise_launch_us == pytest.approx(3, rel=0.01)
    assert profile.meta.elementwise_bandwidth_share == pytest.approx(1e12 / 2e12, rel=0.02)
    assert "4 rows" in (out / "meta.toml").read_text()


def test_servingsim_is_simulated_with(tmp_path: Path) -> None:
    source, out = servingsim(tmp_path / "kernel_profile"), tmp_path / "gpu"
    told = invoke("import", "servingsim", str(source), "--out", str(out), "--sms", "64", *HARDWARE)
    assert told.exit_code == 0, told.output
    profile = read_profile(out)
    assert profile.meta.device == "Some GPU"
    assert profile.meta.kv_stream.is_measured
    assert profile.values("gemm", "bf16", "n", k=1024) == [4096, 6144, 151936]
    assert profile.values("context_attention", "bf16", "query") == [16, 2048]
    assert "2 rows of tp1/attention.csv" in told.output
    settings = {"cluster.gpu": out, "cluster.model": "Qwen3-0.6B", "experiment.queries": 20}
    settings["workload.arrivals.rate_per_s"] = 0.05
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run = CliRunner().invoke(main, ["run", "best-of-n", *changes, "--out", str(tmp_path / "run"), "--format", "json"])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_link_is_stated_where_none_was_measured(tmp_path: Path) -> None:
    source = servingsim(tmp_path / "a")
    arguments = ("import", "servingsim", str(source), *HARDWARE, "--out", str(tmp_path / "gpu"))
    assert invoke(*arguments, "--link-latency-us", "20").exit_code == 2
    assert invoke(*arguments, "--link-latency-us", "20", "--link-gb-per-s", "16").exit_code == 0
    rows = read_profile(tmp_path / "gpu").select("all_reduce", "graph", ranks=4, bytes=1 << 20)
    assert rows["latency_us"].tolist() == pytest.approx([20 + (1 << 20) / 16e3], rel=1e-5)


def test_hardware_of_a_bundled_gpu(tmp_path: Path) -> None:
    source, out = servingsim(tmp_path / "a"), tmp_path / "gpu"
    assert invoke("import", "servingsim", str(source), "--like", "l40s", "--out", str(out)).exit_code == 0
    assert read_profile(out).meta.bandwidth_bytes_per_s == 864e9


@pytest.mark.parametrize(
    ("layout", "break_it", "message"),
    [
        ("vidur", lambda folder: (folder / "mlp.csv").unlink(), "lacks mlp.csv"),
        ("vidur", lambda folder: edit(folder / "mlp.csv", "n_embd", "embd"), "no column n_embd"),
        ("vidur", lambda folder: edit(folder / "attention.csv", "4096,", "many,"), "expected a number"),
        ("servingsim", lambda folder: (folder / "meta.yaml").unlink(), "cannot be read"),
        ("servingsim", lambda folder: edit(folder / "meta.yaml", "gpu: ", "card: "), "does not name the gpu"),
        ("servingsim", lambda folder: edit(folder / "meta.yaml", "Qwen3-0.6B", "Qwen3-0.5B"), "unknown model"),
        ("servingsim", lambda folder: (folder / "tp1" / "dense.csv").unlink(), "dense.csv"),
        ("servingsim", lambda folder: edit(folder / "tp1" / "dense.csv", "proj", "part"), "nothing for gemm"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path: Path, layout: str, break_it: Any, message: str) -> None:
    folder = {"vidur": vidur, "servingsim": servingsim}[layout](tmp_path / "source")
    break_it(folder)
    if layout == "servingsim" and message == "nothing for gemm":
        (folder / "tp1" / "per_sequence.csv").write_text("layer,sequences,time_us\n")
    device = ("--device", "A") if layout == "vidur" else ()
    told = invoke("import", layout, str(folder), *device, "--out", str(tmp_path / "gpu"), *HARDWARE)
    assert told.exit_code == 2
    assert message in told.output
    assert not (tmp_path / "gpu").exists()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_usage(tmp_path: Path) -> None:
    source = servingsim(tmp_path / "a")
    told = invoke("import", "servingsim", str(source), "--out", str(tmp_path / "gpu"), "--memory-gib", "80")
    assert told.exit_code == 2
    assert "--bandwidth-gb-per-s, --peak-tflops" in told.output
    (tmp_path / "there").mkdir()
    told = invoke("import", "servingsim", str(source), "--out", str(tmp_path / "there"), *HARDWARE)
    assert told.exit_code == 2
    assert "exists already" in told.output
    second = servingsim(tmp_path / "b", gpu="Another GPU")
    told = invoke("import", "servingsim", str(source), str(second), "--out", str(tmp_path / "gpu"), *HARDWARE)
    assert told.exit_code == 2
    assert "expected one GPU" in told.output
