"""Mixtures of experts and windowed attention: what they weigh, how long they take, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ttsim_des.errors import InputError
from ttsim_des.latency.attention import pieces, windowed
from ttsim_des.latency.experts import experts_curve
from ttsim_des.latency.geometry import ModelGeometry, load_geometry
from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import load_profile
from ttsim_des.latency.shape import PrefillChunk, StepShape

H200 = load_profile("h200-sxm")
QWEN = load_geometry("Qwen3-30B-A3B", Path())
OSS = load_geometry("gpt-oss-120b", Path())


def steps(
    geometry: ModelGeometry, tp: int = 1, dtype: str = "bf16", *, expert_parallel: bool = False
) -> KernelStepModel:
    return KernelStepModel(
        H200, geometry, tp, dtype, max_context=40_960, unequal_contexts=False, expert_parallel=expert_parallel
    )


def decode(seqs: int, context: int) -> StepShape:
    return StepShape(seqs, seqs * context, context, (), seqs)


def test_measured_experts_are_returned_nearly_as_measured() -> None:
    rows = H200.select("moe", "bf16", hidden=2048, intermediate=768, experts=128, top_k=8, tp=1, ep=4)
    curve = experts_curve(H200, QWEN, "bf16", 4, expert_parallel=True)  # Made to rise with the tokens.
    for tokens, latency_us in zip(rows["tokens"].tolist(), rows["latency_us"].tolist(), strict=True):
        assert curve.at(tokens) == pytest.approx(latency_us, rel=0.05)
    assert curve.at(2 * curve.x[-1]) == pytest.approx(2 * curve.at(curve.x[-1]))


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_experts_are_most_of_what_a_step_of_many_sequences_costs(expert_parallel: bool) -> None:
    model = steps(QWEN, 2, expert_parallel=expert_parallel)
    experts_us = experts_curve(H200, QWEN, "bf16", 2, expert_parallel=expert_parallel).at(64)
    step_us = model.step_ns(decode(64, 500)) / 1e3
    assert 0.35 * step_us < 48 * experts_us < 0.9 * step_us


def test_more_tokens_touch_more_experts() -> None:
    """One token reads 8 of 128 experts, a few hundred read all: the step grows much faster than a dense one."""
    dense = steps(load_geometry("Qwen3-8B", Path()))
    sparse = steps(QWEN)
    growth = [model.step_ns(decode(64, 500)) / model.step_ns(decode(1, 500)) for model in (dense, sparse)]
    assert growth[0] < 1.4 < 2 < growth[1]
    # Of the 3.3 billion parameters that a token touches, a step of one sequence reads each once.
    assert sparse.step_ns(decode(1, 500)) > 2 * 3.3e9 / 4.8e12 * 1e9


def test_weights_are_shared_by_slices_or_whole_and_the_router_stays_everywhere() -> None:
    router = 2 * QWEN.layers * QWEN.experts * QWEN.hidden
    norms = 2 * (QWEN.layers * (2 * QWEN.hidden + 2 * QWEN.head_dim) + QWEN.hidden)
    whole = QWEN.weight_bytes("bf16", 1)
    assert whole == 2 * QWEN.parameters()
    assert QWEN.weight_bytes("bf16", 4) * 4 == whole + 3 * (router + norms)
    experts = 3 * OSS.hidden * OSS.expert_intermediate * OSS.experts * OSS.layers
    assert OSS.weight_bytes("bf16", 1) == pytest.approx(2 * (OSS.parameters() - experts) + experts * 17 / 32)
    # The published checkpoint of 60.8 GiB holds the experts' biases too (arXiv 2508.10925, table 1).
    assert OSS.weight_bytes("bf16", 1) / 2**30 == pytest.approx(60.8, rel=0.02)


def test_windowed_layers_keep_no_context() -> None:
    assert OSS.kv_bytes_per_token("bf16", 1) == 18 * OSS.kv_bytes_per_layer("bf16", 1)
    model = steps(OSS)
    everywhere = steps(replace(OSS, window=0, window_layers=0))
    short, long = decode(16, 100), decode(16, 20_000)
    assert model.step_ns(short) == pytest.approx(everywhere.step_ns(short), rel=0.01)
    grown = [each.step_ns(long) - each.step_ns(short) for each in (model, everywhere)]
    assert grown[0] == pytest.approx(grown[1] / 2, rel=0.03)
    prompt = StepShape(0, 0, 0, (PrefillChunk(8000, 0),), 1)
    assert model.step_ns(prompt) < everywhere.step_ns(prompt)


def test_runs_of_a_windowed_model_are_what_step_ns_says() -> None:
    model, ctx_sum, done = steps(OSS), 7 * 30, 0
    while done < 3000:
        run = model.decode_run(StepShape(7, ctx_sum + 7 * done, 30 + done, (), 7), 3000 - done)
        for step in {0, run.steps // 2, run.steps - 1}:
            at = ctx_sum + 7 * (done + step)
            assert run.first_ns + step * run.increment_ns == model.step_ns(StepShape(7, at, 30 + done + step, (), 7))
        done += run.steps


def test_window_on_a_curve_and_on_chunks() -> None:
    curve = windowed(Curve((0.0, 100.0, 300.0), (1.0, 2.0, 4.0), 0.01), 200, 0.5)
    assert [curve.at(x) for x in (0, 100, 200, 300, 400)] == pytest.approx([1.0, 2.0, 3.0, 3.5, 4.0])
    cut = pieces([PrefillChunk(300, 1000), PrefillChunk(50, 20)], 128)
    assert cut == (PrefillChunk(128, 128), PrefillChunk(128, 128), PrefillChunk(44, 128), PrefillChunk(50, 20))


@pytest.mark.parametrize(
    ("gpu", "name", "tp", "dtype", "expert_parallel", "message", "key"),
    [
        ("a100-sxm", "gpt-oss-20b", 1, "bf16", False, "mxfp4 experts", "cluster.model"),
        ("h200-sxm", "Qwen3-30B-A3B", 16, "bf16", True, "whole experts among 16", "cluster.tp"),
    ],
)
def test_what_was_not_measured_is_said(
    gpu: str, name: str, tp: int, dtype: str, expert_parallel: bool, message: str, key: str
) -> None:
    with pytest.raises(InputError) as error:
        experts_curve(load_profile(gpu), load_geometry(name, Path()), dtype, tp, expert_parallel=expert_parallel)
    assert message in str(error.value).replace("shared by ", "")
    assert error.value.problems[0].key == key


def test_unknown_experts_are_said() -> None:
    with pytest.raises(InputError, match="another GPU or model"):
        experts_curve(H200, replace(QWEN, experts=100), "bf16", 1, expert_parallel=False)


MOE_CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
OSS_CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "attention_bias": True,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "quantization_config": {"quant_method": "mxfp4"},
}


@pytest.mark.parametrize(("config", "bundled"), [(MOE_CONFIG, QWEN), (OSS_CONFIG, OSS)], ids=["qwen", "gpt-oss"])
def test_hugging_face_config_equals_the_bundled_geometry(
    config: dict[str, object], bundled: ModelGeometry, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_geometry("config.json", tmp_path)
    assert replace(loaded, name=bundled.name, source=bundled.source) == bundled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_only_layers": [0]}, "layers without experts"),
        ({"num_experts_per_tok": None}, "intermediate"),
        ({"num_experts_per_tok": 200}, "more experts per token than experts"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised by fp8"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOE_CONFIG | change))
    with pytest.raises(InputError) as error:
        load_geometry("config.json", tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("experts = 128", "half of what experts need"),
        ("window = 128", "windows make no sense"),
        ('expert_dtype = "int4"', "expert_dtype is 'int4'"),
    ],
)
def test_bad_toml_is_named(tmp_path: Path, line: str, message: str) -> None:
    base = "hidden = 64\nintermediate = 64\nlayers = 2\nheads = 2\nkv_heads = 2\nhead_dim = 32\nvocab = 64\n"
    (tmp_path / "m.toml").write_text(f"{base}max_position = 64\n{line}\n")
    with pytest.raises(InputError) as error:
        load_geometry("m.toml", tmp_path)
    assert message in str(error.value)
