"""The composed step model: against published figures, its own rules, and its exactness."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsim_des.errors import InputError
from ttsim_des.latency.geometry import load_geometry
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import GpuProfile, load_profile
from ttsim_des.latency.shape import PrefillChunk, StepShape

MAX_CONTEXT = 131_072
H200 = load_profile("h200-sxm")

# H200, bf16, TP1, milliseconds: decode at batch 1, 8 and 64 with 1k of context, and prefill of 512 tokens. Twice: a
# composition made from the same tables by other hands, and NVIDIA's own engine.
PUBLISHED = {
    "1.5B": ((1.84, 1.90, 2.41, 3.5), (1.86, 1.90, 2.41, 3.9)),
    "7B": ((4.50, 4.67, 6.00, 10.5), (4.55, 4.70, 6.06, 10.7)),
    "14B": ((8.67, 9.13, 12.9, 20.2), (8.63, 9.00, 12.8, 20.6)),
}


def model(size: str = "7B", tp: int = 1, profile: GpuProfile = H200, **more: int) -> KernelStepModel:
    geometry = load_geometry(f"DeepSeek-R1-Distill-Qwen-{size}", Path())
    return KernelStepModel(profile, geometry, tp, max_context=more.pop("max_context", MAX_CONTEXT), **more)


def decode(seqs: int, ctx_sum: int) -> StepShape:
    return StepShape(seqs, ctx_sum, -(-ctx_sum // seqs), (), seqs)


def prefill(*chunks: tuple[int, int]) -> StepShape:
    return StepShape(0, 0, 0, tuple(PrefillChunk(*chunk) for chunk in chunks), len(chunks))


MODELS = {size: model(size, unequal_contexts=False) for size in PUBLISHED}


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("source", [0, 1], ids=["composition", "nvidia"])
def test_composition_meets_published_figures(size: str, source: int) -> None:
    *decodes_ms, prefill_ms = PUBLISHED[size][source]
    for batch, expected_ms in zip((1, 8, 64), decodes_ms, strict=True):
        assert MODELS[size].step_ns(decode(batch, batch * 1024)) / 1e6 == pytest.approx(expected_ms, rel=0.04)
    assert MODELS[size].step_ns(prefill((512, 0))) / 1e6 == pytest.approx(prefill_ms, rel=0.12)


@settings(max_examples=150)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 2500), st.integers(1, 40_000), st.data())
def test_runs_are_what_step_ns_says(size: str, seqs: int, mean: int, data: st.DataObject) -> None:
    steps = MODELS[size]
    ctx_sum = seqs * mean + data.draw(st.integers(0, seqs - 1))
    horizon = data.draw(st.integers(1, 20_000))
    done = 0
    while done < horizon:
        at = ctx_sum + done * seqs
        run = steps.decode_run(decode(seqs, at), horizon - done)
        assert 1 <= run.steps <= horizon - done
        assert run.increment_ns >= 0
        for step in {0, run.steps // 2, run.steps - 1}:
            assert run.first_ns + step * run.increment_ns == steps.step_ns(decode(seqs, at + step * seqs))
        done += run.steps
    # The longest run ends where another line or the unmeasured begins, unless the horizon cut it.
    run = steps.decode_run(decode(seqs, ctx_sum), 1 << 40)
    if run.steps < 1 << 40:
        last, beyond = (ctx_sum + step * seqs for step in (run.steps - 1, run.steps))
        row = steps._rows[seqs]
        assert any(last < edge <= beyond for edge in (*row._from, row.max_ctx_sum + 1))


@pytest.mark.parametrize("seqs", [1, 7, 64, 300, 1024])
def test_whole_number_slopes_stay_on_the_float_row(seqs: int) -> None:
    steps = MODELS["1.5B"]
    curve = steps._decode.curve(seqs)
    fixed_ns = steps.dense_ns(seqs, seqs)
    for context in range(1, MAX_CONTEXT, 997):
        exact_ns = fixed_ns + 28_000 * curve.at(context)
        assert steps.step_ns(decode(seqs, seqs * context)) == pytest.approx(exact_ns, rel=0.001)


def test_decode_is_continuous_and_never_cheaper_with_more_context() -> None:
    steps = MODELS["7B"]
    for seqs in (1, 28, 200):
        times = [steps.step_ns(decode(seqs, seqs * context)) for context in range(1, 9000)]
        growth = [after - before for before, after in itertools.pairwise(times)]
        assert min(growth) >= 0
        assert max(growth) < 0.002 * times[0] + seqs * 100


@pytest.mark.parametrize("seqs", [1024, 2048])
def test_grid_ends_are_extrapolated_not_clamped(seqs: int) -> None:
    steps = MODELS["7B"]
    # So many sequences were measured with contexts of at most a few hundred tokens; the bytes to read go on growing.
    growth_ns = steps.step_ns(decode(seqs, seqs * 4000)) - steps.step_ns(decode(seqs, seqs * 3000))
    read_ns = 1000 * 57_344 * seqs / 4.8e12 * 1e9
    assert 0.8 * read_ns < growth_ns < 1.5 * read_ns


def test_decodes_and_chunks_share_one_attention_launch() -> None:
    steps = MODELS["7B"]
    chunk = PrefillChunk(300, 0)
    mixed = steps.step_ns(StepShape(32, 64_000, 2000, (chunk,), 33)) - steps.dense_ns(332, 33)
    decodes = steps.step_ns(decode(32, 64_000)) - steps.dense_ns(32, 32)
    alone = steps.step_ns(prefill((300, 0))) - steps.dense_ns(300, 1)
    assert decodes + alone - mixed == pytest.approx(28_000 * steps._prefill.launch_us, abs=2)


def test_mixed_step_reads_the_weights_once() -> None:
    steps = MODELS["14B"]
    alone = steps.step_ns(decode(32, 32 * 2000))
    chunk = steps.step_ns(prefill((512, 0)))
    mixed = steps.step_ns(StepShape(32, 32 * 2000, 2000, (PrefillChunk(512, 0),), 33))
    assert max(alone, chunk) < mixed < 0.8 * (alone + chunk)


def test_chunks_over_a_prefix_add_up_to_the_whole_prompt() -> None:
    steps = MODELS["7B"]
    whole_us = steps._prefill.us([PrefillChunk(8192, 0)])
    chunked_us = sum(steps._prefill.us([PrefillChunk(2048, done)]) for done in range(0, 8192, 2048))
    assert whole_us < chunked_us < 1.25 * whole_us
    assert steps.step_ns(prefill((256, 16_000))) > steps.step_ns(prefill((256, 0)))


def test_several_chunks_share_a_launch_and_add_their_areas() -> None:
    attention = MODELS["7B"]._prefill
    one_us = attention.us([PrefillChunk(1024, 0)])
    both_us = attention.us([PrefillChunk(1024, 0)] * 2)
    assert both_us <= 2 * one_us - 0.7 * attention.launch_us
    summed_us = attention.us([PrefillChunk(8192, 0)])
    split_us = attention.us([PrefillChunk(4096, 0)] * 2)
    assert split_us < 0.75 * summed_us  # One prompt of 8,192 tokens has twice the area of two of 4,096.


def test_rows_without_logits_cost_no_lm_head() -> None:
    steps = MODELS["7B"]
    chunk = PrefillChunk(2048, 0)
    inner = steps.step_ns(StepShape(0, 0, 0, (chunk,), 0))
    last = steps.step_ns(StepShape(0, 0, 0, (chunk,), 1))
    head_bytes = 2 * 152_064 * 3584
    assert last - inner > head_bytes / 4.8e12 * 1e9


def test_tensor_parallel_helps_large_models_most() -> None:
    def speedup(size: str) -> float:
        shape = decode(1, 4096)
        return MODELS[size].step_ns(shape) / model(size, 4).step_ns(shape)

    small, middle, large = speedup("1.5B"), speedup("7B"), speedup("14B")
    assert small < middle < large
    assert 1.4 < large < 3.0


def test_large_steps_pay_eager_all_reduces() -> None:
    graphs, eager = model("7B", 2), model("7B", 2, graph_tokens=8)
    assert eager.step_ns(decode(8, 8000)) == graphs.step_ns(decode(8, 8000))
    assert eager.step_ns(decode(16, 16000)) > graphs.step_ns(decode(16, 16000)) + 57 * 10_000


def test_gap_is_added_to_every_step() -> None:
    slow = model("7B", gap_ns=50_000, unequal_contexts=False)
    for shape in (decode(3, 300), prefill((100, 0))):
        assert slow.step_ns(shape) == MODELS["7B"].step_ns(shape) + 50_000


def test_domain() -> None:
    steps = MODELS["7B"]
    assert steps.in_domain(decode(64, 64 * 4000))
    assert steps.in_domain(StepShape(8, 8000, 1000, (PrefillChunk(512, 1024),), 9))
    assert not steps.in_domain(decode(1024, 1024 * 4000))
    assert not steps.in_domain(decode(3000, 3000 * 10))
    assert not steps.in_domain(prefill((512, 20_000)))
    assert not steps.in_domain(prefill((40_000, 0)))


@pytest.mark.parametrize("gpu", ["a100-sxm", "h100-sxm"])
def test_other_systems_are_slower_by_their_bandwidth(gpu: str) -> None:
    profile = load_profile(gpu)
    ratio = model("14B", profile=profile).step_ns(decode(1, 1024)) / MODELS["14B"].step_ns(decode(1, 1024))
    assert ratio == pytest.approx(4.8e12 / profile.meta.bandwidth_bytes_per_s, rel=0.2)


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-4B", "Qwen3-32B", "Llama-3.1-8B", "Qwen2.5-32B"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("gpu", ["a100-sxm", "h100-sxm", "h200-sxm"])
def test_every_bundled_model_can_be_timed(name: str, tp: int, gpu: str) -> None:
    steps = KernelStepModel(load_profile(gpu), load_geometry(name, Path()), tp, max_context=40_960)
    assert 0 < steps.step_ns(decode(5, 5000)) < steps.step_ns(decode(600, 600 * 5000))


def test_what_was_not_measured_is_said() -> None:
    geometry = load_geometry("DeepSeek-R1-Distill-Qwen-7B", Path())
    for key, arguments in (
        ("cluster.dtype", (1, "fp8", "bf16")),
        ("cluster.kv_dtype", (1, "bf16", "fp8")),
        ("cluster.tp", (7, "bf16", "bf16")),
    ):
        with pytest.raises(InputError) as error:
            KernelStepModel(load_profile("a100-sxm"), geometry, *arguments, max_context=4096)
        assert error.value.problems[0].key == key
