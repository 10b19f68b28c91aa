import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import integrate, stats

from ttsim_des.errors import InputError
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import ConstantTokens, LognormalTokens, TableTokens
from ttsim_des.workload.lengths import RecordedLengths, make_lengths, sample_uniforms, standard_normals

STREAMS = Streams(11)


def lognormal(**settings):
    return make_lengths(LognormalTokens(distribution="lognormal", **settings), Path(), "workload.output")


def table(folder, file="t.csv", column="tokens", problem_column=None):
    settings = TableTokens(distribution="table", file=file, column=column, problem_column=problem_column)
    return make_lengths(settings, folder, "workload.output")


def problem_table(folder, sizes=(3, 8, 1, 5)):
    """Row k of problem p is 100 (p + 1) + k; rows of different problems interleave."""
    rows = sorted((k, p, 100 * (p + 1) + k) for p, size in enumerate(sizes) for k in range(size))
    (folder / "t.csv").write_text("problem,tokens\n" + "".join(f"q{p},{tokens}\n" for _, p, tokens in rows))
    return table(folder, problem_column="problem")


def test_fewer_samples_are_a_prefix_of_more():
    many = sample_uniforms(STREAMS, "x", 5, 20, 100)
    for samples in (1, 7, 8, 9, 16, 33, 99):
        np.testing.assert_array_equal(sample_uniforms(STREAMS, "x", 5, 20, samples), many[:, :samples])
    assert len(np.unique(many)) == many.size


@pytest.fixture(params=["constant", "lognormal", "table", "problems"])
def lengths(request, tmp_path):
    if request.param == "constant":
        return make_lengths(ConstantTokens(distribution="constant", tokens=7), tmp_path, "workload.output")
    if request.param == "lognormal":
        return lognormal(mean=300.0, query_sigma=0.6, sample_sigma=0.3)
    by_problem = problem_table(tmp_path)
    return by_problem if request.param == "problems" else table(tmp_path)


def test_a_count_belongs_to_its_query_and_sample(lengths):
    whole = lengths.tokens(STREAMS, "a", 0, 60, 20)
    assert whole.dtype == np.int64
    assert whole.min() >= 1
    assert whole.max() <= lengths.largest()
    np.testing.assert_array_equal(lengths.tokens(STREAMS, "a", 40, 20, 3), whole[40:, :3])
    np.testing.assert_array_equal(lengths.tokens(STREAMS, "a", 13, 1, 20), whole[13:14])


def test_means_are_met(lengths):
    counts = lengths.tokens(STREAMS, "mean", 0, 4000, 2)[:, 0]
    for cap in (1, 120, 250, 10_000):
        capped = np.minimum(counts, cap)
        error = capped.std() / math.sqrt(len(capped))
        assert abs(capped.mean() - lengths.mean(cap)) <= 4 * error + 1e-9


def test_normal_quantiles_agree_with_scipy():
    p = np.concatenate([[2.0**-53, 1e-12, 1 - 2.0**-53], STREAMS.uniforms("q", 0, 500, 4).ravel()]).reshape(1, -1)
    np.testing.assert_allclose(standard_normals(p), stats.norm.ppf(p), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("query_sigma", "sample_sigma"), [(0.7, 0.3), (0.0, 0.5), (0.5, 0.0)])
def test_lognormal_effects(query_sigma, sample_sigma):
    lengths = lognormal(mean=1e6, query_sigma=query_sigma, sample_sigma=sample_sigma)  # rounding is out of sight
    logs = np.log(lengths.tokens(STREAMS, "effects", 0, 4000, 4))
    sigma = math.hypot(query_sigma, sample_sigma)
    assert stats.kstest(logs[:, 0], "norm", args=(math.log(1e6) - sigma**2 / 2, sigma)).pvalue > 1e-3
    within = logs.var(axis=1, ddof=1).mean()
    between = logs.mean(axis=1).var(ddof=1) - within / 4
    assert within == pytest.approx(sample_sigma**2, rel=0.08, abs=1e-9)
    assert between == pytest.approx(query_sigma**2, rel=0.12, abs=5e-3)


def test_lognormal_is_rounded_and_clipped():
    counts = lognormal(mean=50.0, query_sigma=1.0, sample_sigma=1.0, min=20, max=90).tokens(STREAMS, "a", 0, 500, 3)
    assert set(np.unique(counts)) >= {20, 90}
    assert counts.min() == 20
    assert counts.max() == 90
    assert lognormal(mean=50.4).tokens(STREAMS, "a", 0, 2, 2).tolist() == [[50, 50], [50, 50]]


def test_extreme_lognormal_stays_in_range():
    counts = lognormal(mean=1e7, query_sigma=4.0, sample_sigma=4.0).tokens(STREAMS, "a", 0, 2000, 8)
    assert counts.min() >= 1
    assert counts.max() <= 10_000_000


@pytest.mark.parametrize(
    ("low", "high", "cap"), [(1, 10_000_000, 500), (200, 2000, 1000), (1, 300, 1000), (600, 900, 500)]
)
def test_lognormal_mean_is_the_integral(low, high, cap):
    lengths = lognormal(mean=700.0, query_sigma=0.7, sample_sigma=0.4, min=low, max=high)
    sigma = math.hypot(0.7, 0.4)
    mu = math.log(700) - sigma**2 / 2

    def integrand(z: float) -> float:
        return min(max(math.exp(mu + sigma * z), low), high, cap) * stats.norm.pdf(z)

    kinks = [(math.log(x) - mu) / sigma for x in (low, high, cap)]
    expected = integrate.quad(integrand, -9, 9, points=[z for z in kinks if -9 < z < 9], limit=200)[0]
    assert lengths.mean(cap) == pytest.approx(expected, rel=1e-8)


def test_samples_of_a_problem_come_without_replacement(tmp_path):
    sizes = (3, 8, 1, 5)
    counts = problem_table(tmp_path, sizes).tokens(STREAMS, "a", 0, 2000, 16)
    problems = counts[:, 0] // 100 - 1
    np.testing.assert_array_equal(counts // 100 - 1, np.repeat(problems[:, None], 16, axis=1))
    for row, problem in zip(counts.tolist(), problems.tolist(), strict=True):
        size = sizes[problem]
        for start in range(0, 16 - size + 1, size):  # every full round shows each row of the problem once
            assert sorted(row[start : start + size]) == [100 * (problem + 1) + k for k in range(size)]
    assert stats.chisquare(np.bincount(problems, minlength=4)).pvalue > 1e-3


def test_orders_within_a_problem_are_equally_likely(tmp_path):
    counts = problem_table(tmp_path, (3,)).tokens(STREAMS, "a", 0, 6000, 6) - 100
    first, second = counts[:, :3] @ [100, 10, 1], counts[:, 3:] @ [100, 10, 1]
    for orders in (first, second):
        assert stats.chisquare(np.unique(orders, return_counts=True)[1]).pvalue > 1e-3
        assert len(np.unique(orders)) == 6
    assert (
        stats.chi2_contingency(
            np.array(
                [
                    np.bincount(np.searchsorted(np.unique(second), second[first == o]), minlength=6)
                    for o in np.unique(first)
                ]
            )
        ).pvalue
        > 1e-3
    )


def test_recorded_counts_ignore_the_sample():
    lengths = RecordedLengths(np.array([5, 6, 7]))
    assert lengths.tokens(STREAMS, "a", 1, 2, 2).tolist() == [[6, 6], [7, 7]]
    assert lengths.mean(6) == pytest.approx(17 / 3)


def write(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def parquet_bytes(folder):
    pq.write_table(pa.table({"tokens": list(range(1, 5000))}), folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "key", "message"),
    [
        ("absent.csv", None, "file", "does not exist"),
        ("t.csv", "", "file", "cannot read"),
        ("t.csv", "tokens\n", "file", "has no rows"),
        ("t.csv", "token\n3\n", "column", "no column 'tokens'; expected one of: token (did you mean 'token'?)"),
        ("t.csv", "tokens,tokens\n3,4\n", "column", "more than one column"),
        ("t.csv", "tokens\n3\n2.5\n", "column", "data row 2: 2.5; expected a whole number from 1"),
        ("t.csv", "tokens\n3\n-2\n", "column", "data row 2: -2"),
        ("t.csv", "tokens\n0\n", "column", "data row 1: 0"),
        ("t.csv", "tokens\n3\nnan\n", "column", "data row 2"),
        ("t.csv", "tokens\n3.0\ninf\n", "column", "data row 2: inf"),
        ("t.csv", "tokens\n99999999999\n", "column", "data row 1: 99999999999"),
        ("t.csv", "tokens,b\n3,1\n,1\n", "column", "data row 2: nothing"),
        ("t.csv", "tokens\nmany\n", "column", "holds string"),
        ("t.csv", "tokens\n3,4\n", "file", "cannot read"),
        ("t.csv", b"\xff\xfe\x00\x81", "file", "cannot read"),
        ("t.txt", "tokens\n3\n", "file", "a .csv, .jsonl or .parquet file"),
        ("t.jsonl", '{"tokens": 3}\n{"tokens": ', "file", "cannot read"),
        ("t.parquet", b"not parquet at all", "file", "cannot read"),
        ("t.parquet", "truncated", "file", "cannot read"),
        ("t.parquet", "damaged", "file", "cannot read"),
    ],
)
def test_unusable_tables(tmp_path, name, content, key, message):
    if content in ("truncated", "damaged"):
        whole = parquet_bytes(tmp_path)
        content = (
            whole[: len(whole) // 2]
            if content == "truncated"
            else b"PAR1" + b"\xaa" * (len(whole) - 400) + whole[-396:]
        )
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        table(tmp_path, file=name)
    assert [problem.key for problem in error.value.problems] == [f"workload.output.{key}"]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_both_missing_columns_are_reported_at_once(tmp_path):
    write(tmp_path, "t.csv", "a,b\n1,2\n")
    with pytest.raises(InputError) as error:
        table(tmp_path, problem_column="problem")
    assert [problem.key for problem in error.value.problems] == [
        "workload.output.column",
        "workload.output.problem_column",
    ]


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        table(tmp_path)


@pytest.mark.parametrize("file", ["", "a\0b.csv", "x" * 5000 + ".csv"])
def test_odd_file_names(tmp_path, file):
    with pytest.raises(InputError):
        table(tmp_path, file=file)


def test_formats_agree(tmp_path):
    counts = [3, 1, 4, 1, 5]
    write(tmp_path, "t.csv", "tokens\n" + "".join(f"{c}\n" for c in counts))
    write(tmp_path, "t.jsonl", "".join(f'{{"tokens": {c}}}\n' for c in counts))
    pq.write_table(pa.table({"tokens": pa.array(counts, pa.float32())}), tmp_path / "t.parquet")
    drawn = [
        table(tmp_path, file=f"t.{kind}").tokens(STREAMS, "a", 0, 50, 2).tolist()
        for kind in ("csv", "jsonl", "parquet")
    ]
    assert drawn[0] == drawn[1] == drawn[2]


def test_lognormal_min_above_max():
    with pytest.raises(InputError, match=r"workload.output.min: min 9 is above max 8"):
        lognormal(mean=5.0, min=9, max=8)


def test_siblings_are_alike_as_in_measured_chains_of_thought():
    """Max and min of 8 over the mean: 1.3-1.8 and 0.55-0.75 for real questions, 1.8-2.3 and 0.23-0.41 shuffled.

    Within-question log-sd 0.2-0.4, between 0.5-0.8 (R1, QwQ, R1-Distill; see docs/workload.md).
    """
    alike = lognormal(mean=4000.0, query_sigma=0.6, sample_sigma=0.3).tokens(STREAMS, "a", 0, 4000, 8)
    shuffled = lognormal(mean=4000.0, query_sigma=0.0, sample_sigma=math.hypot(0.6, 0.3)).tokens(
        STREAMS, "a", 0, 4000, 8
    )
    ratios = [(c.max(axis=1).mean() / c.mean(), c.min(axis=1).mean() / c.mean()) for c in (alike, shuffled)]
    assert 1.3 < ratios[0][0] < 1.8
    assert 0.55 < ratios[0][1] < 0.75
    assert 1.8 < ratios[1][0] < 2.5
    assert 0.23 < ratios[1][1] < 0.41


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([["a"], ["b"]]), "holds list<"),
        (pa.array([{"a": 1}, {"a": 2}]), "holds struct<a: int64>"),
        (pa.array(["a", None]), "data row 2: nothing; expected a label"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    pq.write_table(pa.table({"tokens": [3, 4], "problem": labels}), tmp_path / "t.parquet")
    with pytest.raises(InputError) as error:
        table(tmp_path, file="t.parquet", problem_column="problem")
    assert [problem.key for problem in error.value.problems] == ["workload.output.problem_column"]
    assert message in str(error.value)


@pytest.mark.parametrize(
    "labels",
    [pa.array([7, 9, 7]), pa.array(["7", "9", "7"]), pa.DictionaryArray.from_arrays([2, 0, 2], ["9", "unused", "7"])],
)
def test_labels_of_any_kind(tmp_path, labels):
    pq.write_table(pa.table({"tokens": [1, 20, 2], "problem": labels}), tmp_path / "t.parquet")
    counts = table(tmp_path, file="t.parquet", problem_column="problem").tokens(STREAMS, "a", 0, 40, 2)
    assert {tuple(sorted(row)) for row in counts.tolist()} == {(1, 2), (20, 20)}


@pytest.mark.parametrize("values", [pa.array([True]), pa.array(["3"]), pa.array([[3]]), pa.array([b"3"])])
def test_columns_that_hold_no_numbers(tmp_path, values):
    pq.write_table(pa.table({"tokens": values}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"workload\.output\.column: column 'tokens' of .* holds"):
        table(tmp_path, file="t.parquet")
