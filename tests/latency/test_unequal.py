"""The term of unequal contexts: its form, its pieces, its place in a step."""

import itertools
import math
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsim_des import assets
from ttsim_des.errors import InputError
from ttsim_des.latency.geometry import load_geometry
from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import load_profile, read_profile
from ttsim_des.latency.shape import PrefillChunk, StepShape
from ttsim_des.latency.unequal import MAX_PIECES, StreamRate, UnequalContexts


def model(gpu: str = "h200-sxm", size: str = "7B", tp: int = 1, *, unequal: bool = True) -> KernelStepModel:
    geometry = load_geometry(f"DeepSeek-R1-Distill-Qwen-{size}", Path())
    return KernelStepModel(load_profile(gpu), geometry, tp, max_context=131_072, unequal_contexts=unequal)


ON, OFF = model(), model(unequal=False)


def decode(seqs: int, ctx_sum: int, ctx_max: int) -> StepShape:
    return StepShape(seqs, ctx_sum, ctx_max, (), seqs)


@settings(max_examples=200)
@given(st.integers(1, 1500), st.integers(1, 12_000), st.integers(0, 30_000), st.integers(1, 9_000), st.data())
def test_runs_are_what_step_ns_says(seqs: int, mean: int, ahead: int, horizon: int, data: st.DataObject) -> None:
    ctx_sum = seqs * mean + data.draw(st.integers(0, seqs - 1))
    ctx_max = -(-ctx_sum // seqs) + ahead
    done = 0
    while done < horizon:
        run = ON.decode_run(decode(seqs, ctx_sum + done * seqs, ctx_max + done), horizon - done)
        assert 1 <= run.steps <= horizon - done
        for step in {0, 1, run.steps // 2, run.steps - 1} & set(range(run.steps)):
            at = done + step
            shape = decode(seqs, ctx_sum + at * seqs, ctx_max + at)
            assert run.first_ns + step * run.increment_ns == ON.step_ns(shape)
        done += run.steps


@settings(max_examples=100)
@given(st.integers(53, 1024), st.integers(1, 8_000), st.integers(0, 20_000), st.lists(st.integers(1, 500), max_size=6))
def test_where_a_leap_is_cut_changes_nothing(seqs: int, mean: int, ahead: int, cuts: list[int]) -> None:
    def total_ns(horizons: list[int]) -> int:
        done = total = 0
        for horizon in horizons:
            end = done + horizon
            while done < end:
                shape = decode(seqs, seqs * (mean + done), mean + ahead + done)
                steps, first, increment, _ = ON.decode_run(shape, end - done)
                total += steps * first + increment * (steps * (steps - 1) // 2)
                done += steps
        return total

    assert total_ns(cuts) == total_ns([sum(cuts)])


@pytest.mark.parametrize("seqs", [1, 53, 64, 300])
@pytest.mark.parametrize("context", [1, 63, 64, 1000, 1024, 5000, 40_000])
def test_equal_contexts_cost_nothing_more(seqs: int, context: int) -> None:
    shape = decode(seqs, seqs * context, context)
    assert ON.step_ns(shape) == OFF.step_ns(shape)
    assert ON.decode_run(shape, 10**6) == OFF.decode_run(shape, 10**6)
    # Contexts of c and c - 1: the mean counts as c - 1, so the longest is a token ahead.
    uneven = decode(seqs, seqs * context - seqs + 1, context)
    assert 0 <= ON.step_ns(uneven) - OFF.step_ns(uneven) <= 0.0001 * OFF.step_ns(uneven)


def test_off_is_the_mean_alone() -> None:
    assert OFF.step_ns(decode(64, 64_000, 1000)) == OFF.step_ns(decode(64, 64_000, 30_000))
    assert ON.step_ns(decode(64, 64_000, 30_000)) > OFF.step_ns(decode(64, 64_000, 30_000))


@pytest.mark.parametrize(("gpu", "size", "tp", "first"), [("h200-sxm", "7B", 1, 53), ("a100-sxm", "14B", 2, 44)])
def test_it_begins_where_the_kernel_stops_splitting(gpu: str, size: str, tp: int, first: int) -> None:
    steps, mean_only = model(gpu, size, tp), model(gpu, size, tp, unequal=False)
    for seqs in (1, first - 1):
        shape = decode(seqs, seqs * 1000, 9000)
        assert steps.step_ns(shape) == mean_only.step_ns(shape)
    shape = decode(first, first * 1000, 9000)
    assert steps.step_ns(shape) > mean_only.step_ns(shape)


@pytest.mark.parametrize("seqs", [53, 64, 90, 200, 1024])
def test_pieces_stay_on_the_formula(seqs: int) -> None:
    """docs/latency.md: within 0.1 % of the step, in the mean within a tenth of that."""
    curve, chance = ON._decode.curve(seqs), random.Random(seqs)
    errors = []
    for _ in range(1500):
        mean, ahead = chance.randint(1, 12_000), int(10 ** chance.uniform(0, 4.8))
        shape = decode(seqs, seqs * mean, mean + ahead)
        exact_ns = OFF.step_ns(shape) + 28_000 * ON._unequal.exact_us(curve, mean, mean + ahead)
        errors.append(abs(ON.step_ns(shape) / exact_ns - 1))
    assert max(errors) < 0.001
    assert sum(errors) / len(errors) < 0.0001


def test_the_longest_rules_in_the_end() -> None:
    """One sequence a hundred times the others: its block reads at the rate of one block."""
    near, far = (ON.step_ns(decode(64, 64 * 200, longest)) for longest in (100_000, 120_000))
    rate = load_profile("h200-sxm").meta.kv_stream.bytes_per_s
    assert rate == pytest.approx(1.25 * 4.8e12 / 132)
    assert far - near == pytest.approx(28e9 * 20_000 * 512 / rate, rel=0.02)


def test_longer_longest_never_cheaper() -> None:
    for seqs, mean in ((53, 100), (64, 1000), (128, 5000), (700, 3)):
        times = [ON.step_ns(decode(seqs, seqs * mean, mean + ahead)) for ahead in range(0, 20_000, 7)]
        assert all(after >= before - 700 for before, after in itertools.pairwise(times))


def test_mixed_steps_pay_it_for_their_decodes() -> None:
    chunk = (PrefillChunk(300, 0),)
    mixed = [steps.step_ns(StepShape(64, 64_000, 9000, chunk, 65)) for steps in (ON, OFF)]
    alone = [steps.step_ns(decode(64, 64_000, 9000)) for steps in (ON, OFF)]
    assert mixed[0] - mixed[1] == alone[0] - alone[1] > 0


def test_form_has_its_limits() -> None:
    """t = sqrt((t_mean^2 + s_max^2) / (1 + (s_mean / t_mean)^2)), by hand for round numbers."""
    term = UnequalContexts(
        StreamRate(100, 1e9, launch_us=1.0), kv_heads=2, kv_bytes_per_token=2000, ns_per_layer_us=1000
    )
    flat = Curve((0.0,), (12.0,), 0.0)  # a block reads a token in 1 us
    assert term.min_seqs == 80
    assert term.exact_us(flat, 4, 8) == pytest.approx(12 * math.sqrt((1 + 81 / 144) / (1 + 25 / 144)) - 12)
    assert term.exact_us(flat, 4, 4) == 0
    assert term.exact_us(flat, 0, 10**6) == pytest.approx(10**6, rel=0.01)


def test_pieces_are_bounded_and_fast() -> None:
    term = UnequalContexts(StreamRate(132, 4.5e10), 4, 2048, 28_000)
    curve = ON._decode.curve(64)
    seen = term.line(64, curve, 100, 100)
    for seqs in range(MAX_PIECES + 10):
        term.line(seqs, curve, 1000, 5000)
    assert len(term._pieces) <= MAX_PIECES
    assert term.line(64, curve, 100, 100) == seen


def _profile_with(tmp_path: Path, table: str) -> Path:
    copied = tmp_path / "copied"
    shutil.copytree(assets.root("profiles") / "gpus" / "h200-sxm", copied)
    meta = (copied / "meta.toml").read_text().split("[unequal_contexts]")
    (copied / "meta.toml").write_text(meta[0] + table + "\n[domain]" + meta[1].split("[domain]")[1])
    return copied


def test_a_profile_may_bring_its_own_parameters(tmp_path: Path) -> None:
    table = "[unequal_contexts]\nsms = 188\nstream_bytes_per_s = 12e9\nlaunch_us = 2.5\n"
    assert read_profile(_profile_with(tmp_path, table)).meta.kv_stream == StreamRate(188, 12e9, 2.5, is_measured=True)


def test_a_profile_without_them_gets_the_defaults(tmp_path: Path) -> None:
    assert read_profile(_profile_with(tmp_path, "")).meta.kv_stream == StreamRate(132, 1.25 * 4.8e12 / 132)


@pytest.mark.parametrize("row", ["sms = 0", "sms = -3", "stream_bytes_per_s = 'fast'", "launch_us = -1", "sms = true"])
def test_nonsense_parameters_are_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(InputError, match=r"meta\.toml"):
        read_profile(_profile_with(tmp_path, f"[unequal_contexts]\n{row}\n"))
