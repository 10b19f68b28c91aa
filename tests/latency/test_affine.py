import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.shape import PrefillChunk, StepShape


def decode(seqs: int, ctx_sum: int) -> StepShape:
    return StepShape(seqs, ctx_sum, ctx_sum, (), seqs)


def test_whole_nanoseconds_give_the_sum_exactly() -> None:
    model = AffineStepModel(1000, 7, 5, 3, 2)
    shape = StepShape(4, 101, 60, (PrefillChunk(10, 20), PrefillChunk(3, 0)), 6)
    pairs = 10 * 20 + 55 + 6
    assert model.step_ns(shape) == 1000 + 7 * 17 + 5 * 4 + 3 * 101 + 2 * pairs


def test_fractions_are_exact_over_many_tokens() -> None:
    model = AffineStepModel(per_prefill_qk_pair_ns=0.001, per_token_ns=0.3)
    assert model.step_ns(StepShape(0, 0, 0, (PrefillChunk(1000, 0),), 1)) == 300 + 500


@given(
    st.floats(0, 1000),
    st.floats(0, 50),
    st.integers(1, 300),
    st.integers(0, 5000),
    st.integers(0, 299),
)
def test_run_is_what_step_ns_says(constant: float, slope: float, seqs: int, mean: int, extra: int) -> None:
    model = AffineStepModel(constant, 1.5, 0.25, slope)
    ctx_sum = seqs * (mean + 1) + extra % seqs
    done = 0
    while done < 60:
        run = model.decode_run(decode(seqs, ctx_sum), 60 - done)
        assert 1 <= run.steps <= 60 - done
        for step in range(run.steps):
            expected = model.step_ns(decode(seqs, ctx_sum + step * seqs))
            assert run.first_ns + step * run.increment_ns == expected
        ctx_sum += run.steps * seqs
        done += run.steps


@given(st.floats(0, 50), st.integers(1, 500), st.integers(1, 10**6))
def test_context_term_stays_near_the_line(slope: float, seqs: int, ctx_sum: int) -> None:
    value = AffineStepModel(10, per_decode_ctx_token_ns=slope).step_ns(decode(seqs, ctx_sum))
    assert value == pytest.approx(10 + slope * ctx_sum, abs=252 + 0.0006 * ctx_sum)


def test_runs_do_not_stop_before_a_knot() -> None:
    whole = AffineStepModel(1000, per_decode_ctx_token_ns=2)
    assert whole.decode_run(decode(8, 800), 10**9).steps == 10**9
    fractional = AffineStepModel(1000, per_decode_ctx_token_ns=0.25)
    assert fractional.decode_run(decode(1, 0), 10**9).steps == 750
    assert fractional.decode_run(decode(1, 750), 10**9).steps == 250


def test_a_step_takes_at_least_a_nanosecond() -> None:
    model = AffineStepModel()
    assert model.step_ns(decode(1, 5)) == 1
    assert model.decode_run(decode(1, 5), 40) == (40, 1, 0, True)
