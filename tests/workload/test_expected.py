import pytest

from ttsim_des.errors import InputError
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Limits, Scenario
from ttsim_des.workload.expected import check_limits, expected_work
from ttsim_des.workload.queries import QuerySource


def scenario(queries=1000, samples=4, name="best_of_n", **workload):
    table = {
        "schema": 1,
        "name": "expected",
        "experiment": {"queries": queries},
        "workload": {
            "strategy": {"name": name, "samples": samples},
            "arrivals": {"process": "poisson", "rate_per_s": 2.0},
            "prompt": {"distribution": "constant", "tokens": 30},
            "output": {"distribution": "lognormal", "mean": 400.0, "query_sigma": 0.5, "sample_sigma": 0.3},
            "shared_prefix_tokens": 12,
            "max_tokens": 600,
        }
        | workload,
        "cluster": {"gpu": "h200_sxm", "model": "m"},
    }
    return Scenario.model_validate(table)


def test_agrees_with_what_is_drawn(tmp_path):
    work = expected_work(scenario(3000), tmp_path)
    source = QuerySource(scenario().workload, Streams(4), tmp_path)
    drawn = sum(min(600, source.output_tokens(q, s)) for q in range(3000) for s in range(4))
    assert work.requests == 12_000
    assert work.output_tokens == pytest.approx(drawn, rel=0.02)
    assert work.output_tokens_max == 12_000 * 600
    assert (work.prompt_tokens_mean, work.prompt_tokens_max) == (42, 42)
    assert work.offered_requests_per_s == 8
    assert work.offered_output_tokens_per_s == pytest.approx(8 * work.output_tokens_mean)


def test_single_is_one_request(tmp_path):
    assert expected_work(scenario(name="single"), tmp_path).requests == 1000


@pytest.mark.parametrize("arrivals", [{"process": "closed_loop", "concurrency": 3}, {"process": "together"}])
def test_no_offered_rate(tmp_path, arrivals):
    work = expected_work(scenario(arrivals=arrivals | {"rate_per_s": 1.0}), tmp_path)
    assert work.offered_queries_per_s is None
    assert work.offered_output_tokens_per_s is None


def test_only_the_replayed_part_of_a_trace_counts(tmp_path):
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,5,100\n2,7,900\n4,1000,1000\n")
    trace = {"process": "trace", "file": "t.csv"}
    work = expected_work(scenario(2, arrivals=trace), tmp_path)
    assert work.output_tokens == 4 * (100 + 600)
    assert work.output_tokens_max == 8 * 600
    assert work.prompt_tokens_max == 19
    assert work.offered_queries_per_s == 0.5
    with pytest.raises(InputError, match=r"experiment\.queries"):
        expected_work(scenario(4, arrivals=trace), tmp_path)


def test_limits(tmp_path):
    work = expected_work(scenario(), tmp_path)
    check_limits(work, Limits(requests=4000, output_tokens=4000 * 600))
    with pytest.raises(InputError) as error:
        check_limits(work, Limits(requests=3999, output_tokens=1000))
    assert [p.key for p in error.value.problems] == ["limits.requests", "limits.output_tokens"]
    assert "about 4,000 requests, its limit is 3,999" in str(error.value)
