"""A server that answers one query after the other, worked out by hand."""

import json
from typing import Any

import pytest
from factory import S, World, context, gap, one_at_a_time, query, request, step

from ttsim_des.metrics.summary import summarise


def world() -> World:
    """Arrivals 0, 1, 20, 30 s; outputs 5, 3, 1, 2. Busy [0,6], [6,10], [20,22], [30,33]."""
    return one_at_a_time([0, 1, 20, 30], [5, 3, 1, 2])


def test_terminating_run_by_hand() -> None:
    found = summarise(world().tables(), context(kind="terminating"))
    assert found["schema"] == 1
    assert found["window"]["length_s"] == 33
    assert found["query"]["latency_s"]["mean"] == pytest.approx((6 + 9 + 2 + 3) / 4)
    assert found["query"]["latency_s"]["p50"] is None
    assert found["request"]["ttft_s"]["mean"] == pytest.approx((2 + 7 + 2 + 2) / 4)
    assert found["request"]["queueing_s"]["mean"] == pytest.approx(5 / 4)
    assert found["request"]["tpot_s"] == {**found["request"]["tpot_s"], "count": 3, "mean": 1.0}
    assert found["request"]["itl_s"]["count"] == 7
    assert found["gpu"]["busy_share"] == pytest.approx(15 / 33)
    assert found["steps"]["count"] == 4 + 7
    assert found["achieved"]["queries_per_s"] == pytest.approx(4 / 33)
    assert found["achieved"]["output_tokens_per_s"] == pytest.approx(11 / 33)
    assert found["achieved"]["total_tokens_per_s"] == pytest.approx((11 + 4 * 32) / 33)
    assert found["load"]["mean_queries_in_system"] == pytest.approx(20 / 33)
    assert found["load"]["mean_running"] == pytest.approx(15 / 33)
    held = 4 * 2 * 2 + 3 * 7 + (0 + 1 + 2 + 3 + 0 + 1 + 0) / 16
    assert found["kv"]["mean_held_share"] == pytest.approx(held / 33 / 10)
    assert found["kv"]["peak_held_share"] == pytest.approx((3 + 3 / 16) / 10)
    assert found["cost"]["query_usd"] == pytest.approx(33 / 4 * 3.6 / 3600)
    assert found["cost"]["million_output_tokens_usd"] == pytest.approx(33 / 11 * 1e6 * 0.001)
    assert found["goodput"] == {"limits": {}, "share": None, "queries_per_s": None}


def test_steady_run_counts_the_queries_that_arrive_after_the_warm_up() -> None:
    found = summarise(world().tables(), context(kind="steady", warmup_fraction=0.5))
    window = found["window"]
    assert (window["start_s"], window["end_s"], window["queries"], window["warmup_queries"]) == (1, 30, 2, 2)
    assert found["query"]["latency_s"]["mean"] == pytest.approx((2 + 3) / 2)  # followed beyond the window
    assert found["offered"]["queries_per_s"] == pytest.approx(2 / 29)
    assert found["achieved"]["queries_per_s"] == pytest.approx(3 / 29)  # ends at 6, 10, 22
    assert found["gpu"]["busy_share"] == pytest.approx((5 + 4 + 2 + 0) / 29)
    assert found["achieved"]["output_tokens_per_s"] == pytest.approx((5 + 3 + 1) / 29)
    assert found["load"]["mean_queries_in_system"] == pytest.approx((5 + 9 + 2) / 29)


def test_the_step_that_starts_when_the_window_ends_counts_its_start_only() -> None:
    found = summarise(world().tables(), context(kind="steady", warmup_fraction=0.5))
    assert found["steps"]["count"] == 4 + 3 + 1 + 1  # 2, 3, 4, 5 | 6, 8, 9 | 20 | 30


def test_population_is_cut_by_order_of_arrival_not_by_id() -> None:
    rows = [request(i, i, arrival * S, (arrival + 1) * S, (arrival + 2) * S) for i, arrival in enumerate((30, 0, 10))]
    tables = World(requests=rows, queries=[query(row["query_id"], [row]) for row in rows]).tables()
    found = summarise(tables, context(kind="steady", warmup_fraction=0.4))
    assert found["window"]["start_s"] == 0
    assert found["window"]["queries"] == 2


def fan_out() -> World:
    rows = [
        request(0, 0, 0, 2 * S, 4 * S, sample=0, output_tokens=3),
        request(1, 0, 0, 2 * S, 10 * S, sample=1, output_tokens=5, preemptions=2, recomputed_tokens=7),
        request(
            2, 0, 0, 3 * S, 10 * S, sample=2, output_tokens=2, status="cancelled", finish_reason="", cached_tokens=16
        ),
    ]
    return World(requests=rows, queries=[query(0, rows, wasted_tokens=2, straggler_request_id=1)])


def test_fan_out_counts_stragglers_waste_and_preemptions() -> None:
    found = summarise(fan_out().tables(), context())
    assert found["query"]["straggler_share"]["mean"] == pytest.approx(6 / 10)
    assert found["waste"] == {"cancelled_requests": 1, "wasted_tokens": 2, "wasted_share": pytest.approx(0.2)}
    assert found["preemption"]["count"] == 2
    assert found["preemption"]["recomputed_tokens"] == 7
    assert found["prefix_cache"]["hit_share"] == pytest.approx(16 / 96)
    assert found["request"]["tpot_s"]["count"] == 2  # the cancelled one has none
    assert found["request"]["tpot_s"]["mean"] == pytest.approx((2 / 2 + 8 / 4) / 2)
    assert any("preemptions per request" in text for text in found["warnings"])


@pytest.mark.parametrize(
    ("limits", "share"),
    [
        ({"slo_query_latency_s": 10.0}, 1.0),
        ({"slo_query_latency_s": 9.99}, 0.0),
        ({"slo_ttft_s": 2.0}, 1.0),
        ({"slo_tpot_s": 1.5}, 0.0),
        ({"slo_tpot_s": 2.0, "slo_ttft_s": 1.9}, 0.0),
    ],
)
def test_goodput_takes_the_first_token_and_the_slowest_sample(limits: dict[str, float], share: float) -> None:
    found = summarise(fan_out().tables(), context(**limits))["goodput"]
    assert found["share"] == share
    assert found["queries_per_s"] == pytest.approx(share / 10)


def test_no_price_no_cost_but_gpu_seconds() -> None:
    found = summarise(world().tables(), context(gpu_hour_usd=None, gpus=4))
    assert found["cost"]["query_usd"] is None
    assert found["cost"]["gpu_s_per_query"] == pytest.approx(4 * 33 / 4)
    assert any("cluster.gpu_hour_usd" in text for text in found["warnings"])


def test_steps_outside_the_domain_are_said() -> None:
    tables = World(steps=[step(0, 3, S), step(3 * S, 1, S, in_domain=False)], end_ns=4 * S).tables()
    found = summarise(tables, context())
    assert found["steps"]["outside_domain_share"] == 0.25
    assert any("measured domain" in text for text in found["warnings"])


@pytest.mark.parametrize("kind", ["steady", "terminating"])
def test_nothing_happened(kind: str) -> None:
    found = summarise(World().tables(), context(kind=kind))
    json.dumps(found, allow_nan=False)
    assert found["query"]["latency_s"]["mean"] is None
    assert found["cost"]["query_usd"] is None


def test_a_score_without_tokens_and_a_refused_query() -> None:
    score = request(0, 0, 0, -1, 2 * S, output_tokens=0, max_tokens=0)
    refused: dict[str, Any] = {
        "status": "refused",
        "finish_reason": "",
        "output_tokens": 0,
        "queued_ns": -1,
        "scheduled_ns": -1,
    }
    turned_away = request(1, 1, 0, -1, -1, **refused)
    rows = [query(0, [score]), query(1, [turned_away], status="refused")]
    found = summarise(World(queries=rows, requests=[score, turned_away]).tables(), context(slo_ttft_s=5.0))
    assert found["request"]["ttft_s"]["count"] == 0
    assert found["query"]["latency_s"]["count"] == 1
    assert found["query"]["refused"] == 1
    assert found["goodput"]["share"] == 0.5
    assert found["achieved"]["total_tokens_per_s"] == pytest.approx(32 / 2)


def test_numbers_are_plain_and_repeatable() -> None:
    tables = world().tables()
    once = json.dumps(summarise(tables, context(slo_ttft_s=1.0)), allow_nan=False)
    assert once == json.dumps(summarise(tables, context(slo_ttft_s=1.0)), allow_nan=False)


def test_all_at_once_in_steady_state_has_no_window() -> None:
    rows = [request(i, i, 0, S, 2 * S) for i in range(3)]
    tables = World(requests=rows, queries=[query(i, [row]) for i, row in enumerate(rows)], gaps=[gap(S, 1, S)]).tables()
    found = summarise(tables, context(kind="steady"))
    assert found["achieved"]["queries_per_s"] is None
    assert found["cost"]["gpu_s_per_query"] is None
    assert any("experiment.kind" in text for text in found["warnings"])
