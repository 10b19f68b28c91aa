"""The parts of tools/profile_gpu.py that need no torch: grids, refinement, statistics, journal, what is written."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.journal import Journal
from profiler.machine import Machine
from profiler.points import Domain, Needs, Point, collectives, curves, evidence, kv_bytes
from profiler.refine import between, leave_one_out, refine
from profiler.timer import Effort, Measured, measure, summarise
from profiler.write import fit, write_profile
from ttsim_des.latency.geometry import load_geometry
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.profile import load_profile, read_profile
from ttsim_des.latency.shape import StepShape

GEOMETRY = load_geometry("Qwen3-0.6B", Path())
NEEDS = Needs.of(GEOMETRY, [1, 2], ["bf16"], ["bf16"])
DOMAIN = Domain(2048, 256, 32768, 8e9)


def test_products_are_those_of_the_composition():
    assert NEEDS.products["bf16"] == tuple(
        sorted(
            {(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (151936, 1024)}
            | {(2048, 1024), (1024, 1024), (3072, 1024), (1024, 1536), (75968, 1024)}
        )
    )
    assert [(each.heads, each.kv_heads) for each in NEEDS.heads] == [(8, 4), (16, 8)]


@pytest.mark.parametrize("quick", [True, False])
def test_no_point_is_too_large_and_none_comes_twice(quick):
    points = [point for curve in curves(NEEDS, DOMAIN, quick=quick) for point in curve.points]
    points += evidence(NEEDS, DOMAIN, quick=quick, has_lengths=True)
    points += collectives(NEEDS, DOMAIN)
    assert len(set(points)) == len(points)
    attention = [point for point in points if "attention" in point.family]
    assert attention
    assert max(map(kv_bytes, attention)) <= DOMAIN.memory_bytes
    assert {point["ranks"] for point in points if point.family == "all_reduce"} == {2}


def test_refinement_looks_closer_only_where_interpolation_misses():
    def kinked(x: int) -> float:
        return 10.0 if x <= 100 else 10.0 + (x - 100)

    measured = {x: kinked(x) for x in (1, 16, 256, 4096)}
    looked = refine(measured, kinked, depth=3)
    assert {held.at for held in looked if held.error > 0.03} <= set(range(16, 257))
    assert not any(held.error > 0.03 for held in looked if held.at < 16 or held.at > 256)
    assert len(looked) > 3
    assert set(measured) == {1, 16, 256, 4096} | {held.at for held in looked}
    assert max(held.error for held in leave_one_out({x: 3.0 + 2 * x for x in (1, 5, 9, 100)})) < 1e-12


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_the_middle_lies_between(low, gap):
    middle = between(low, low + gap)
    assert (middle is None) == (gap == 1) or low < middle < low + gap


def test_the_interval_covers_the_median_as_often_as_it_says():
    source, covered = random.Random(1), 0
    for _ in range(2_000):
        found = summarise([source.lognormvariate(0.0, 0.5) for _ in range(31)])
        covered += abs(found.latency_us - 1.0) <= 2 * found.interval * found.latency_us
    assert found.repeats == 31
    assert covered / 2_000 > 0.95
    assert summarise([1.0] * 9 + [2.0]).outliers == pytest.approx(0.1)


def test_repeats_go_on_until_it_is_known():
    source = random.Random(2)
    quiet = measure(lambda: source.gauss(100, 0.1), Effort(precision=0.01, seconds=10))
    loud = measure(lambda: source.gauss(100, 5), Effort(precision=0.01, seconds=10))
    assert quiet.repeats < loud.repeats <= 300
    assert measure(lambda: source.gauss(100, 50), Effort(precision=0.001, seconds=0)).repeats == 7


def test_journal_forgets_nothing_and_takes_no_other_machine(tmp_path, capsys):
    header = {"device": "X", "torch": "1"}
    path, point = tmp_path / "deep" / "m.jsonl", Point.of("gemm", dtype="bf16", n=1, k=2, m=3)
    first = Journal(path, header)
    first.add(point, Measured(1.5, 0.01, 9, 0.0))
    first.add(point.at(m=4), Measured(2.5, 0.01, 9, 0.0))
    first.close()
    path.write_text(path.read_text() + '{"point": ["gemm", {"dty')  # cut short
    again = Journal(path, header)
    assert again.resumed == 2
    again.add(point.at(m=5), Measured(3.5, 0.01, 9, 0.0))
    again.close()
    third = Journal(path, header)
    assert [(p["m"], m.latency_us) for p, m in third.points()] == [(3, 1.5), (4, 2.5), (5, 3.5)]
    third.close()
    with pytest.raises(SystemExit, match="was measured with device = 'X', this is 'Y'"):
        Journal(path, {**header, "device": "Y"})
    path.write_text('{"device": "X", "torch": "1"}\nrubbish\n{"a": 1}\n')
    with pytest.raises(SystemExit, match=r"m\.jsonl:2: is not JSON"):
        Journal(path, header)


def test_profile_of_another_profiles_numbers_gives_its_step_times(tmp_path):
    """Measure a bundled profile instead of a GPU: what is written must say the same where it was measured."""
    source = load_profile("h200-sxm")
    known = KernelStepModel(source, GEOMETRY, 1, max_context=32_768, unequal_contexts=False)
    needs = Needs.of(GEOMETRY, [1], ["bf16"], ["bf16"])
    from ttsim_des.latency.attention import DecodeAttention, PrefillAttention
    from ttsim_des.latency.gemm import gemm_curve

    heads = needs.heads[0]
    decode = DecodeAttention(source, heads.heads, heads.kv_heads, heads.head_dim, "bf16")
    prefill = PrefillAttention(source, heads.heads, heads.kv_heads, heads.head_dim, "bf16", 1.0)

    def latency_us(point: Point) -> float:
        if point.family == "gemm":
            return gemm_curve(source, "bf16", point["n"], point["k"]).at(point["m"])
        if point.family == "decode_attention":
            return decode.curve(point["batch"]).at(point["context"])
        if point.family == "context_attention":
            return prefill._equal_us(point["batch"], point["query"])
        if point.family == "elementwise":
            passes = {"norm": 4, "rotary": 2, "activation": 3}[point["kind"]]
            return 3.0 + 1e6 * 2 * passes * point["tokens"] * point["width"] / (0.8 * 4.8e12)
        if point.family == "unequal":
            return decode.curve(point["batch"]).at(point["mean"])
        return 5.0 + 0.1 * point[{"sampler": "rows", "host": "sequences", "chunk": "query"}[point.family]]

    points = [point for curve in curves(needs, DOMAIN, quick=False) for point in curve.points]
    points += evidence(needs, DOMAIN, quick=False, has_lengths=True)
    measured = [(point, Measured(latency_us(point), 0.0, 7, 0.0)) for point in points]
    fitted = fit(measured, copy_bytes_per_s=4.8e12, sms=132)
    assert fitted.elementwise_launch_us == pytest.approx(3.0, rel=1e-3)
    assert fitted.elementwise_share * fitted.bandwidth_bytes_per_s == pytest.approx(0.8 * 4.8e12, rel=1e-3)
    assert fitted.host_step_us == pytest.approx(5.0)
    out = tmp_path / "made"
    out.mkdir()
    notes = {"source": "a test", "licence": "none", "date": "2026-01-01"}
    write_profile(out, measured, fitted, Machine("Made", 140.0, 132, {"torch": "0"}), notes)
    profile = read_profile(out)
    assert profile.labels("all_reduce") == []
    mine = KernelStepModel(profile, GEOMETRY, 1, max_context=32_768, unequal_contexts=False)
    for seqs, context in ((1, 100), (4, 1_000), (64, 4_096), (200, 3_000)):
        shape = StepShape(seqs, seqs * context, context, (), seqs, 0, 0)
        assert mine.step_ns(shape) == pytest.approx(known.step_ns(shape), rel=0.03), (seqs, context)
    for new in (16, 500, 2_048):
        shape = StepShape(0, 0, 0, ((new, 0),), 1, 0, 0)
        assert mine.step_ns(shape) == pytest.approx(known.step_ns(shape), rel=0.05), new
    assert json.dumps(notes["source"]) in (out / "meta.toml").read_text()
    assert not math.isnan(fitted.bandwidth_bytes_per_s)
