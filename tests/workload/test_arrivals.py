import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ttsim_des.errors import InputError
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Arrivals
from ttsim_des.workload import arrivals as module
from ttsim_des.workload.arrivals import arrival_times_ns

HERE = Path()


def times(queries=1000, seed=1, **settings):
    return list(arrival_times_ns(Arrivals.model_validate(settings), Streams(seed), queries, HERE))


PROCESSES = [
    {"process": "poisson", "rate_per_s": 40.0},
    {"process": "gamma", "rate_per_s": 40.0, "burstiness": 0.25},
    {"process": "gamma", "rate_per_s": 40.0, "burstiness": 3.0},
    {"process": "constant", "rate_per_s": 40.0},
    {"process": "together"},
]


@pytest.mark.parametrize("settings", PROCESSES)
def test_integers_in_order_whatever_the_chunk(settings, monkeypatch):
    whole = times(9000, **settings)
    assert all(type(time) is int for time in whole)
    assert len(whole) == 9000
    assert whole[0] >= 0
    assert all(a <= b for a, b in itertools.pairwise(whole))
    monkeypatch.setattr(module, "CHUNK", 11)
    assert times(500, **settings) == whole[:500]


@pytest.mark.parametrize("shape", [0.25, 1.0, 3.0])
def test_gaps_have_the_stated_distribution(shape):
    settings = {"process": "gamma", "rate_per_s": 40.0, "burstiness": shape}
    gaps_s = np.diff(times(20_001, **settings)) / 1e9
    assert stats.kstest(gaps_s, "gamma", args=(shape, 0, 1 / (40 * shape))).pvalue > 1e-3
    assert stats.kstest(gaps_s, "gamma", args=(shape * 1.1, 0, 1 / (40 * shape * 1.1))).pvalue < 1e-3


def test_poisson_is_gamma_of_shape_one():
    assert times(process="poisson", rate_per_s=3.0) == times(process="gamma", rate_per_s=3.0, burstiness=1.0)
    gaps_s = np.diff(times(20_001, process="poisson", rate_per_s=40.0)) / 1e9
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / 40)).pvalue > 1e-3


def test_gaps_move_smoothly_with_burstiness():
    """Common random numbers: a little more regular is a little different, not another sample."""
    near = times(process="gamma", rate_per_s=3.0, burstiness=1.0 + 1e-9)
    np.testing.assert_allclose(np.diff(near), np.diff(times(process="poisson", rate_per_s=3.0)), rtol=1e-6, atol=2)


def test_rate_scales_time():
    slow, fast = times(process="poisson", rate_per_s=1.0), times(process="poisson", rate_per_s=4.0)
    np.testing.assert_allclose(np.array(slow), 4 * np.array(fast), rtol=0, atol=3 * 1000)


def test_constant_by_hand():
    assert times(4, process="constant", rate_per_s=4.0) == [0, 250_000_000, 500_000_000, 750_000_000]
    assert times(3_000_001, process="constant", rate_per_s=3.0)[-1] == 10**15  # no drift


def test_together():
    assert times(3, process="together") == [0, 0, 0]


def test_trace(tmp_path):
    (tmp_path / "t.csv").write_text("arrival_s\n0.5\n0.5\n1.25\n")
    arrivals = Arrivals(process="trace", file="t.csv")
    assert list(arrival_times_ns(arrivals, Streams(1), 2, tmp_path)) == [500_000_000, 500_000_000]
    with pytest.raises(InputError, match=r"experiment.queries: 4 queries asked of a trace of 3 rows"):
        arrival_times_ns(arrivals, Streams(1), 4, tmp_path)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"process": "poisson"}, "workload.arrivals.rate_per_s"),
        ({"process": "gamma", "rate_per_s": 1.0}, "workload.arrivals.burstiness"),
        ({"process": "trace"}, "workload.arrivals.file"),
        ({"process": "constant", "rate_per_s": 1e-300}, "workload.arrivals.rate_per_s"),
        ({"process": "poisson", "rate_per_s": 5e-324}, "workload.arrivals.rate_per_s"),
    ],
)
def test_bad_settings_fail_at_the_call(settings, key):
    with pytest.raises(InputError) as error:
        arrival_times_ns(Arrivals.model_validate(settings), Streams(1), 1000, HERE)
    assert [problem.key for problem in error.value.problems] == [key]


def test_gaps_beyond_the_clock_are_an_input_error():
    settings = {"process": "gamma", "rate_per_s": 1e-8, "burstiness": 0.01}  # the mean fits, the bursts do not

    def several_seeds():
        for seed in range(20):
            times(40, seed=seed, **settings)

    with pytest.raises(InputError, match="last longer than the clock"):
        several_seeds()


def test_poisson_and_lognormal_need_no_scipy():
    code = (
        "import sys; from pathlib import Path; from ttsim_des.rng import Streams;"
        "from ttsim_des.scenario.schema import Arrivals, LognormalTokens;"
        "from ttsim_des.workload.arrivals import arrival_times_ns; from ttsim_des.workload.lengths import make_lengths;"
        "list(arrival_times_ns(Arrivals(process='poisson', rate_per_s=1.0), Streams(1), 10, Path()));"
        "make_lengths(LognormalTokens(distribution='lognormal', mean=9.0, query_sigma=1.0), Path(), '')"
        ".tokens(Streams(1), 'a', 0, 5, 5);"
        "assert not {'scipy', 'pandas', 'pyarrow', 'simpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
