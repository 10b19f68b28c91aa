import random
from pathlib import Path

import pytest

from ttsim_des.errors import InputError
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Workload
from ttsim_des.workload import queries as module
from ttsim_des.workload.queries import QuerySource

LOGNORMAL = {"distribution": "lognormal", "mean": 300.0, "query_sigma": 0.6, "sample_sigma": 0.3}


def workload(samples=8, **changes):
    table = {
        "strategy": {"name": "best_of_n", "samples": samples},
        "arrivals": {"process": "poisson", "rate_per_s": 1.0},
        "prompt": LOGNORMAL | {"mean": 90.0},
        "output": LOGNORMAL,
        "max_tokens": 4000,
    }
    return Workload.model_validate(table | changes)


def source(seed=1, base_dir=Path(), *, samples=None, **changes):
    return QuerySource(workload(**changes), Streams(seed), base_dir, samples=samples)


def everything(source, queries, samples):
    return [(source.query(q), [source.output_tokens(q, s) for s in range(samples)]) for q in queries]


def test_order_of_asking_does_not_matter():
    ids = list(range(0, 6000, 37))
    expected = dict(zip(ids, everything(source(), ids, 8), strict=True))
    random.Random(5).shuffle(ids)
    shuffled = source()
    assert {q: everything(shuffled, [q], 8)[0] for q in ids} == expected


def test_more_samples_repeat_the_first_ones(monkeypatch):
    ids = range(0, 3000, 97)
    narrow, wide = source(), source()
    wide_n = QuerySource(workload().model_copy(update={"strategy": workload(64).strategy}), Streams(1), Path())
    first = everything(narrow, ids, 8)
    assert [outputs[:8] for _, outputs in everything(wide_n, ids, 64)] == [outputs for _, outputs in first]
    monkeypatch.setattr(module, "_KEPT_VALUES", 300)  # samples beyond the width are forgotten and drawn again
    beyond = everything(wide, ids, 64)
    assert beyond == everything(wide_n, ids, 64)
    assert beyond == everything(wide, ids, 64)


def test_evicted_chunks_come_back_the_same(monkeypatch):
    monkeypatch.setattr(module, "_KEPT_CHUNKS", 2)
    monkeypatch.setattr(module, "_CHUNK_QUERIES", 16)
    small = source()
    ids = [*range(200), *range(200)]
    assert everything(small, ids, 8) == everything(source(), ids, 8)
    assert len(small._chunks) <= 2


def test_memory_is_bounded():
    wide = source(samples=1)
    for query in range(0, 3_000_000, 20_011):
        wide.query(query)
        wide.output_tokens(query, 30_000)
    chunks = sum(len(p) + len(o) for p, o, _ in wide._chunks.values())
    assert chunks <= 64 * 2 * 1024
    assert sum(len(row) for row, _ in wide._wide.values()) == wide._wide_values <= module._KEPT_VALUES


def test_seed_and_replication_matter():
    drawn = [
        everything(QuerySource(workload(), streams, Path()), range(50), 8)
        for streams in (Streams(1, 0), Streams(2, 0), Streams(1, 1))
    ]
    assert len({str(d) for d in drawn}) == 3


def test_prompt_and_output_draws_are_unrelated():
    same = {"prompt": LOGNORMAL, "output": LOGNORMAL}
    pairs = [(q.prompt_tokens, outputs[0]) for q, outputs in everything(source(**same), range(200), 1)]
    assert sum(prompt == output for prompt, output in pairs) < 10


def test_owners_name_the_content():
    plain = source(prompt={"distribution": "constant", "tokens": 40})
    assert plain.query(7) == (7, 40, ((8, 40),))
    shared = source(prompt={"distribution": "constant", "tokens": 40}, shared_prefix_tokens=100)
    assert shared.query(7) == (7, 140, ((0, 100), (8, 140)))
    assert shared.query(0).prompt == ((0, 100), (1, 140))


def test_single_draws_one_sample():
    assert source(strategy={"name": "single", "samples": 8})._width == 1


def test_no_such_query(tmp_path):
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,5,9\n1.5,6,10\n")
    trace = source(base_dir=tmp_path, arrivals={"process": "trace", "file": "t.csv"}, shared_prefix_tokens=3)
    assert everything(trace, [1, 0], 2) == [((1, 9, ((0, 3), (2, 9))), [10, 10]), ((0, 8, ((0, 3), (1, 8))), [9, 9])]
    assert trace.output_tokens(1, 50) == 10
    for missing in (2, -1):
        with pytest.raises(IndexError):
            trace.query(missing)


def test_trace_without_token_columns_leaves_the_distributions(tmp_path):
    (tmp_path / "t.csv").write_text("arrival_s,output_tokens\n0,9\n1.5,10\n")
    trace = source(base_dir=tmp_path, arrivals={"process": "trace", "file": "t.csv"})
    assert [trace.query(q) for q in (0, 1)] == [source().query(q) for q in (0, 1)]
    assert trace.output_tokens(0, 0) == 9


def test_errors_name_the_table(tmp_path):
    missing = {"distribution": "table", "file": "no.csv", "column": "a"}
    for key in ("prompt", "output"):
        with pytest.raises(InputError) as error:
            source(base_dir=tmp_path, **{key: missing})
        assert error.value.problems[0].key == f"workload.{key}.file"
