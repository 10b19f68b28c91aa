import math

import numpy as np
import pytest

from ttsim_des.metrics.stats import (
    describe,
    describe_ns,
    exact_sum,
    mean_interval,
    observations_needed,
    slope_t,
    student_t_quantile,
)


def test_quantile_needs_ten_observations_beyond_it() -> None:
    assert [observations_needed(q) for q in (500, 900, 950, 990, 999)] == [20, 100, 200, 1000, 10_000]
    assert describe(np.arange(19))["p50"] is None
    assert describe(np.arange(20))["p50"] == 9
    assert describe(np.arange(999))["p99"] is None
    assert describe(np.arange(1000))["p99"] == 989
    assert describe(np.arange(10_000))["p99_9"] == 9989


@pytest.mark.parametrize("count", [20, 101, 1000, 12_345])
def test_quantiles_are_the_inverse_of_the_distribution_function(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 500, count)
    found = describe(values)
    for key, q in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99_9", 0.999)):
        if found[key] is not None:
            assert found[key] == np.quantile(values, q, method="inverted_cdf")


def test_nothing_observed_gives_nothing() -> None:
    found = describe_ns(np.zeros(0, dtype=np.int64))
    assert found["count"] == 0
    assert found["mean"] is None
    assert found["p50"] is None


def test_sum_does_not_overflow() -> None:
    values = np.full(1000, 2**62, dtype=np.int64)
    assert exact_sum(values) == 1000 * 2**62
    assert exact_sum(np.array([-5, 3])) == -2


def test_student_t_against_the_printed_table() -> None:
    assert student_t_quantile(0.975, 9) == pytest.approx(2.262, abs=1e-3)
    mean, half = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, rel=1e-3)
    assert mean_interval([1.0]) == (1.0, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_student_t_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = sum(
        abs(mean - 1.0) <= half
        for mean, half in (mean_interval(rng.exponential(1, (10, 50)).mean(axis=1)) for _ in range(400))
    )
    assert 0.92 <= covered / 400 <= 0.98


def test_slope() -> None:
    assert slope_t(np.arange(10.0) * 3) == (pytest.approx(3.0), math.inf)
    assert slope_t(np.full(10, 2.0)) == (0.0, 0.0)
    noisy = np.random.default_rng(0).normal(size=10)
    assert abs(slope_t(noisy)[1]) < 4
