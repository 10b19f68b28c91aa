"""The stability test's two error rates, measured on single-server queues."""

import numpy as np
import pytest
from factory import S, context, one_at_a_time
from numpy.typing import NDArray

from ttsim_des.metrics.stability import judge, number_in_system
from ttsim_des.metrics.summary import summarise


def found_by_arrivals(rng: np.random.Generator, load: float, arrivals: int) -> NDArray[np.int64]:
    """Numbers in an M/M/1 queue that starts empty; the first tenth is cut as warm-up."""
    arrival = np.cumsum(rng.exponential(1 / load, arrivals))
    work = np.cumsum(rng.exponential(1.0, arrivals))
    finish = work + np.maximum.accumulate(arrival - np.concatenate(([0.0], work[:-1])))
    found = number_in_system((arrival * S).astype(np.int64), (finish * S).astype(np.int64))
    return found[arrivals // 10 :]


def alarm_rate(load: float, arrivals: int, worlds: int = 300) -> float:
    rng = np.random.default_rng(20)
    return sum(judge(found_by_arrivals(rng, load, arrivals))["stable"] is False for _ in range(worlds)) / worlds


@pytest.mark.parametrize(
    ("load", "arrivals", "most"), [(0.5, 200, 0.0), (0.8, 200, 0.03), (0.9, 200, 0.1), (0.9, 2000, 0.02)]
)
def test_few_false_alarms_below_saturation(load: float, arrivals: int, most: float) -> None:
    assert alarm_rate(load, arrivals) <= most


@pytest.mark.parametrize(
    ("load", "arrivals", "least"), [(1.2, 1000, 0.85), (1.2, 5000, 0.99), (1.5, 200, 0.85), (1.5, 1000, 0.99)]
)
def test_overload_is_caught(load: float, arrivals: int, least: float) -> None:
    assert alarm_rate(load, arrivals) >= least


def test_filling_up_after_the_warm_up_is_not_overload() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):  # no queueing at all, a service of a ninth of the window
        arrival = np.cumsum(rng.exponential(1.0, 200))
        found = number_in_system(
            (arrival * S).astype(np.int64), ((arrival + rng.exponential(20, 200)) * S).astype(np.int64)
        )
        alarms += judge(found[20:])["stable"] is False
    assert alarms / 300 <= 0.03


def test_too_few_arrivals_give_no_verdict() -> None:
    assert judge(np.arange(49))["stable"] is None
    assert judge(np.arange(500))["stable"] is False


def test_a_growing_queue_withholds_latencies_but_not_the_rest() -> None:
    tables = one_at_a_time(range(200), [3] * 200).tables()
    summary = summarise(tables, context(kind="steady"))
    assert summary["stability"]["stable"] is False
    assert summary["query"]["latency_s"]["mean"] is None
    assert summary["query"]["latency_s"]["count"] == 180
    assert summary["request"]["tpot_s"]["mean"] == 1.0
    assert any("the queue grows" in text and "rate_per_s" in text for text in summary["warnings"])
    closed = summarise(tables, context(kind="steady", arrivals="closed_loop"))
    assert closed["stability"]["stable"] is None
    assert closed["query"]["latency_s"]["mean"] is not None
