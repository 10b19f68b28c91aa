"""The step model composed from a profile of layers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.layers import LayerStepModel, LayerTables, Link, Terms
from ttsim_des.latency.shape import PrefillChunk, StepShape
from ttsim_des.latency.unequal import StreamRate

AXES = ((0, 16, 64, 256), (0, 16, 256, 1024), (0, 1, 4, 16, 64), (0, 16, 256, 1024))
GRID = np.array(
    [
        0.0 if not (chunk or seqs) else 2 + chunk * (before + chunk / 2) / 1000 + seqs * context / 300
        for chunk, before, seqs, context in product(*AXES)
    ]
).reshape([len(axis) for axis in AXES])
TABLES = LayerTables(
    {"embedding": Curve((1.0, 512.0), (1.0, 52.1), 0.1), "qkv_proj": Curve((1.0, 512.0), (20.0, 20.0), 0.0)},
    {"lm_head": Curve((1.0, 64.0), (30.0, 30.0), 0.0), "sampler": Curve((1.0, 64.0), (5.0, 5.0), 0.0)},
    AXES,
    GRID,
)


def model(**given) -> LayerStepModel:
    settings = {"layers": 4, "hidden": 1024, "vocab": 1000, "max_context": 4096, "terms": Terms()} | given
    return LayerStepModel(TABLES, **settings)


def decode(seqs: int, context: int, longest: int | None = None) -> StepShape:
    return StepShape(seqs, seqs * context, longest or context, (), seqs)


def test_a_step_by_hand() -> None:
    # 4 sequences of 256: embedding 1.3, 4 layers of 20, lm_head 30, sampler 5; attention 2 + 4 x 256 / 300 a layer.
    assert model().step_ns(decode(4, 256)) == pytest.approx(1000 * (1.3 + 80 + 35 + 4 * (2 + 1024 / 300)), abs=2)
    without = model(terms=Terms(sampler=False))
    assert model().step_ns(decode(4, 256)) - without.step_ns(decode(4, 256)) == 5_000


def test_a_prompt_by_hand() -> None:
    shape = StepShape(0, 0, 0, (PrefillChunk(64, 16),), 1)
    expected = 1 + 63 * 51.1 / 511 + 80 + 35 + 4 * (2 + 64 * (16 + 32) / 1000)
    assert model().step_ns(shape) == pytest.approx(1000 * expected, abs=2)


def test_ranks_reduce_twice_a_layer_and_once_before_and_gather_logits() -> None:
    link = Link(10, 1e9)
    alone, ranks = (model(link=given).step_ns(decode(4, 256)) for given in (None, link))
    # 9 all-reduces of 4 x 1024 bf16 values, and half of one of 4 x 1000.
    assert ranks - alone == pytest.approx(1000 * (9 * (10 + 8.192) + (10 + 8.0) / 2), abs=2)
    assert model(link=link, terms=Terms(all_reduce=False)).step_ns(decode(4, 256)) == alone


def test_small_batches_are_padded_to_captured_sizes() -> None:
    padded, plain = (model(capture_sizes=sizes) for sizes in ((1, 8), ()))
    assert padded.step_ns(decode(4, 256)) - plain.step_ns(decode(4, 256)) == pytest.approx(400, abs=2)
    assert padded.step_ns(decode(8, 256)) == plain.step_ns(decode(8, 256))


@settings(max_examples=80)
@given(st.integers(1, 80), st.integers(1, 2000), st.integers(0, 3000), st.lists(st.integers(1, 300), max_size=5))
def test_runs_are_the_steps(seqs: int, mean: int, ahead: int, cuts: list[int]) -> None:
    stream = StreamRate(4, 1e9, 0.0, True)
    one = model(stream=stream, kv_heads=2, head_bytes=512.0)
    done = 0
    for horizon in cuts:
        shape = StepShape(seqs, seqs * (mean + done), mean + ahead + done, (), seqs)
        steps, first, increment, inside = one.decode_run(shape, horizon)
        for j in (0, steps - 1):
            later = StepShape(seqs, seqs * (mean + done + j), mean + ahead + done + j, (), seqs)
            assert one.step_ns(later) == first + j * increment
            assert one.in_domain(later) == inside
        done += steps


def test_the_longest_context_counts_with_chunks_in_any_batch() -> None:
    stream = StreamRate(188, 1e9, 0.0, True)
    one = model(stream=stream, kv_heads=2, head_bytes=512.0)
    chunk = (PrefillChunk(64, 0),)
    even, uneven = (StepShape(2, 512, longest, chunk, 3) for longest in (256, 400))
    assert one.step_ns(uneven) > one.step_ns(even)
    assert one.step_ns(decode(2, 256, 400)) == one.step_ns(decode(2, 256))  # alone it is still split over blocks
