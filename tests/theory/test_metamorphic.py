"""Relations between runs that must hold whatever the numbers are."""

import pytest
from world import column, run_world, scenario

OUTPUT = {"distribution": "lognormal", "mean": 60.0, "query_sigma": 0.6, "sample_sigma": 0.3}
POISSON = {"process": "poisson", "rate_per_s": 20.0}
BEST_OF_4 = {"name": "best_of_n", "samples": 4}
STEP = {"constant_ns": 1_000_000, "per_token_ns": 20_000, "per_decode_ctx_token_ns": 10}


def test_best_of_one_is_plain_serving(tmp_path):
    plain = run_world(scenario(POISSON, OUTPUT, 200), tmp_path, max_num_seqs=4, **STEP)
    best = run_world(
        scenario(POISSON, OUTPUT, 200, strategy={"name": "best_of_n", "samples": 1}), tmp_path, max_num_seqs=4, **STEP
    )
    assert plain.queries.equals(best.queries)
    assert plain.requests.equals(best.requests)
    assert plain.steps.equals(best.steps)


@pytest.mark.parametrize("strategy", [None, BEST_OF_4])
def test_replaying_a_run_as_a_trace_repeats_it(tmp_path, strategy):
    """Arrivals and prompts from the records of a run; outputs too when there is one sample."""
    first = run_world(scenario(POISSON, OUTPUT, 150, strategy=strategy), tmp_path, max_num_seqs=6, **STEP)
    rows = zip(
        column(first.queries, "arrival_ns").tolist(),
        column(first.queries, "prompt_tokens").tolist(),
        column(first.queries, "output_tokens").tolist(),
        strict=True,
    )
    lines = [
        f"{time // 10**9}.{time % 10**9:09d},{prompt}" + (f",{output}" if strategy is None else "")
        for time, prompt, output in rows
    ]
    header = "arrival_s,prompt_tokens" + (",output_tokens" if strategy is None else "")
    (tmp_path / "run.csv").write_text("\n".join([header, *lines]) + "\n")
    replay = scenario({"process": "trace", "file": "run.csv"}, OUTPUT, 150, strategy=strategy)
    again = run_world(replay, tmp_path, max_num_seqs=6, **STEP)
    assert again.queries.equals(first.queries)
    assert again.requests.equals(first.requests)


def test_time_has_no_scale(tmp_path):
    """Twice the step time and twice the gaps: every latency doubles, to the nanosecond."""
    lines = [(query * query * 7_919 % 40_000_000 + query * 40_000_000) for query in range(120)]
    for factor in (1, 2):
        text = "".join(f"{factor * t // 10**9}.{factor * t % 10**9:09d}\n" for t in lines)
        (tmp_path / f"x{factor}.csv").write_text("arrival_s\n" + text)
    runs = [
        run_world(
            scenario({"process": "trace", "file": f"x{factor}.csv"}, OUTPUT, 120, strategy=BEST_OF_4),
            tmp_path,
            max_num_seqs=6,
            **{name: factor * value for name, value in STEP.items()},
        )
        for factor in (1, 2)
    ]
    for name in ("arrival_ns", "first_token_ns", "finish_ns"):
        assert (2 * column(runs[0].queries, name)).tolist() == column(runs[1].queries, name).tolist()


def test_the_same_run_twice_is_the_same(tmp_path):
    world = scenario(POISSON, OUTPUT, 100, strategy=BEST_OF_4)
    once, twice = (run_world(world, tmp_path, max_num_seqs=6, **STEP) for _ in range(2))
    assert once == twice or all(getattr(once, t).equals(getattr(twice, t)) for t in ("queries", "requests", "steps"))
    assert not once.queries.equals(run_world(world, tmp_path, replication=1, max_num_seqs=6, **STEP).queries)


def test_cancelling_never_raises_a_query_s_tokens(tmp_path):
    """Steps that do not depend on the batch, room for everybody: the others' schedule is the same with and without."""
    output = {"distribution": "lognormal", "mean": 60, "query_sigma": 0.5, "sample_sigma": 0.5}
    everybody, early = (
        run_world(
            scenario(POISSON, output, 150, strategy={"name": name, "samples": 5}), tmp_path, constant_ns=1e6
        ).queries
        for name in ("self_consistency", "first_finish")
    )
    all_tokens, some_tokens = column(everybody, "output_tokens"), column(early, "output_tokens")
    assert (some_tokens <= all_tokens).all()
    assert some_tokens.sum() < 0.8 * all_tokens.sum()
    assert (column(early, "finish_ns") <= column(everybody, "finish_ns")).all()
