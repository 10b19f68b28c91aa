import pytest
from factory import S, World, query, request

from ttsim_des.errors import InputError
from ttsim_des.report.explain import explain


def world() -> World:
    rows = [
        request(0, 3, 10 * S, 12 * S, 14 * S, sample=0, output_tokens=3, scheduled_ns=11 * S),
        request(1, 3, 10 * S, 12 * S, 20 * S, sample=1, preemptions=1, recomputed_tokens=7, scheduled_ns=11 * S),
        request(
            2, 3, 10 * S, -1, 20 * S, sample=2, output_tokens=0, status="cancelled", finish_reason="", cached_tokens=16
        ),
    ]
    rows[2]["scheduled_ns"] = 11 * S
    return World(requests=rows, queries=[query(3, rows, wasted_tokens=2, straggler_request_id=1)])


def test_a_life_from_arrival_to_answer() -> None:
    text = explain(world().tables(), 3)
    lines = text.splitlines()
    assert lines[0] == "Query 3: finished, 3 requests, answered after 10.0 s"
    times = [float(line.split()[0][1:]) for line in lines if line.strip().startswith("+")]
    assert times == sorted(times)
    assert "samples 0-2 sent" in text
    assert "samples 0-1 prefill starts, 0 tokens from the prefix cache" in text
    assert "sample 2 prefill starts, 16 tokens from the prefix cache" in text
    assert "samples 0-1 first token" in text
    assert "the answer is there: sample 0" in text
    assert "sample 1, spent 1.00 s waiting to be scheduled, 1.00 s prefill, 8.00 s decoding" in text
    assert "60% of the query's time" in text
    assert "Samples cancelled: 1; output tokens of no use: 2." in text
    assert "Preemptions for want of KV blocks: 1; tokens computed again: 7." in text


def test_an_unknown_query_names_the_valid_range() -> None:
    with pytest.raises(InputError, match="no query 4; expected an id from 3 to 3"):
        explain(world().tables(), 4)
    with pytest.raises(InputError, match="expected a run with queries"):
        explain(World().tables(), 0)


def test_open_and_refused_queries_have_a_life_too() -> None:
    row = request(0, 0, 0, -1, -1, status="refused", finish_reason="", output_tokens=0, queued_ns=-1, scheduled_ns=-1)
    text = explain(World(requests=[row], queries=[query(0, [row], status="refused")], end_ns=S).tables(), 0)
    assert "never served" in text
    row = request(0, 0, 0, S, -1, status="running", finish_reason="")
    text = explain(World(requests=[row], queries=[query(0, [row], status="open")], end_ns=9 * S).tables(), 0)
    assert "still open after 9.00 s" in text
