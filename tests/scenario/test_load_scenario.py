from collections.abc import Callable
from pathlib import Path

import pytest

from ttsim_des.assets import names, root
from ttsim_des.errors import InputError
from ttsim_des.scenario.load import examine_scenario, load_scenario

Write = Callable[[str | bytes], str]


def messages(path: str, *overrides: str, seed: int | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_scenario(path, overrides, seed)
    return [str(problem) for problem in caught.value.problems]


def test_valid_scenario_with_whole_numbers_for_floats(write: Write, valid: str, tmp_path: Path):
    loaded = load_scenario(write(valid))
    assert loaded.scenario.workload.arrivals.rate_per_s == 1.0
    assert loaded.base_dir == tmp_path.resolve()


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file(write: Write):
    text = """\
schema = 1
name = "bad name"
sede = 3
[workload]
max_token = 100
prompt = { distribution = "constant", tokens = true }
[workload.output]
distribution = "lognorml"
[workload.arrivals]
process = "gama"
rate_per_s = nan
[cluster]
gpu = "h200-sxm"
tp = 1.0
max_num_seqs = 5
[latency]
model = "affine"
"""
    assert messages(write(text)) == [
        "s.toml:2:1: name: \"bad name\" is not valid; expected letters, digits, '.', '_' and '-', at most 100, "
        "starting with a letter or a digit",
        "s.toml:3:1: sede: unknown key (did you mean 'seed'?)",
        "s.toml:4:2: workload.max_tokens: missing; expected a whole number from 1 to 10_000_000",
        "s.toml:5:1: workload.max_token: unknown key (did you mean 'max_tokens'?)",
        "s.toml:6:39: workload.prompt.tokens: true is not a number or text; "
        "expected a whole number from 1 to 10_000_000",
        's.toml:8:1: workload.output.distribution: "lognorml" is not a distribution; '
        "expected one of constant, lognormal, table, outcomes (did you mean 'lognormal'?)",
        's.toml:10:1: workload.arrivals.process: "gama" is not valid; expected one of poisson, gamma, constant, '
        "closed_loop, trace, together (did you mean 'gamma'?)",
        "s.toml:11:1: workload.arrivals.rate_per_s: nan is out of range; expected a number above 0, at most 1_000_000",
        "s.toml:12:2: cluster.model: missing; expected text",
        "s.toml:14:1: cluster.tp: 1.0 is not a whole number; expected a whole number from 1 to 64",
        "s.toml:15:1: cluster.max_num_seqs: unknown key (did you mean 'engine.max_num_seqs'?)",
        's.toml:16:2: latency.affine: missing, model = "affine" needs it; expected a table [latency.affine]',
    ]


def test_a_broken_table_does_not_hide_the_rules_about_others(write: Write, valid: str):
    found = messages(write(valid.replace("rate_per_s = 1", 'process = "gamma"') + 'tp = "x"\n'))
    assert [line.split(": ")[1] for line in found] == [
        "workload.arrivals.rate_per_s",
        "workload.arrivals.burstiness",
        "cluster.tp",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["workload.arrivals={process='gamma', rate_per_s=1}"], "workload.arrivals.burstiness: missing"),
        (["workload.arrivals={process='closed_loop'}"], "workload.arrivals.concurrency: missing"),
        (["workload.arrivals={process='trace'}"], "workload.arrivals.file: missing"),
        (["workload.arrivals={process='trace', file=''}"], "workload.arrivals.file: is empty"),
        (["workload.arrivals.concurrency=3"], "workload.arrivals.concurrency: has no meaning"),
        (["workload.arrivals={process='together'}"], "experiment.kind: a steady state needs arrivals over time"),
        (["workload.strategy.samples=2"], "workload.strategy.samples: 2 samples, but"),
        (["workload.strategy={name='best_of_n', samples=2, first=3}"], "workload.strategy.first: waits for 3"),
        (["workload.strategy.name=best_off_n"], "(did you mean 'best_of_n'?)"),
        (["workload.output.min=200"], "workload.output.min: 200 is above max = 100"),
        (["workload.output.mean=2000"], "workload.output.mean: 2000 is above max = 100"),
        (
            ["engine={enable_chunked_prefill=false, max_model_len=200, max_num_batched_tokens=32}"],
            "engine.max_num_batched_tokens: 32 is below max_model_len = 200",
        ),
        (["latency.model=affine"], "--set latency.model=affine: latency.affine: missing"),
        (["latency={model='affine', affine={}}"], "latency.affine: all coefficients are 0"),
        (["schema=2"], "schema: this is format 2, written for a newer ttsim-des"),
        (["schema=true"], "schema: true is not a format version"),
    ],
)
def test_cross_key_rules(write: Write, valid: str, overrides: list[str], expected: str):
    found = messages(write(valid), *overrides)
    assert len(found) == 1
    assert expected in found[0]


def test_overrides_reach_absent_keys_nested_tables_and_unions(write: Write, valid: str):
    scenario = load_scenario(
        write(valid),
        [
            "cluster.tp=2",
            "slo.ttft_s=1",
            "latency.model=affine",
            "latency.affine.constant_us=5",
            "workload.output={distribution='constant', tokens=7}",
            "workload.output.tokens=8",
            "description=two words",
        ],
        seed=9,
    ).scenario
    assert (scenario.cluster.tp, scenario.slo.ttft_s, scenario.seed) == (2, 1.0, 9)
    assert scenario.latency.affine is not None
    assert scenario.latency.affine.constant_us == 5.0
    assert scenario.workload.output.model_dump() == {"distribution": "constant", "tokens": 8}
    assert scenario.description == "two words"


def test_an_empty_override_removes_what_the_file_says(write: Write, valid: str):
    changes = ["workload.arrivals.process=closed_loop", "workload.arrivals.concurrency=2"]
    path = write(valid)
    assert "workload.arrivals.rate_per_s: has no meaning" in messages(path, *changes)[0]
    arrivals = load_scenario(path, [*changes, "workload.arrivals.rate_per_s="]).scenario.workload.arrivals
    assert (arrivals.rate_per_s, arrivals.concurrency) == (None, 2)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cluster.tp=two", '--set cluster.tp=two: cluster.tp: "two" is text; expected a whole number from 1 to 64'),
        ("cluster.tpp=2", "--set cluster.tpp=2: cluster.tpp: unknown key (did you mean 'tp'?)"),
        ("seed.x=1", None),
        ("name.x=1", "--set name.x=1: name: is a value, not a table"),
        ("cluster", "--set cluster: not of the form key=value; expected for example --set cluster.tp=2"),
        ("#=2", "--set #=2: not of the form key=value; expected for example --set cluster.tp=2"),
        ("=2", "--set =2: not of the form key=value; expected for example --set cluster.tp=2"),
        ("a..b=2", "--set a..b=2: not of the form key=value; expected for example --set cluster.tp=2"),
    ],
)
def test_wrong_overrides_are_named_as_typed(write: Write, valid: str, override: str, expected: str | None):
    found = messages(write(valid), override)
    assert len(found) == 1
    assert found[0].startswith("--set seed.x=1: seed: is a table") if expected is None else found == [expected]


def test_a_wrong_seed_is_named_as_the_option(write: Write, valid: str):
    assert messages(write(valid), seed=-1)[0].startswith("--seed -1: seed: -1 is out of range")


def test_missing_file_names_the_nearest(write: Write, valid: str):
    write(valid)
    assert messages("t.toml")[0].startswith("t.toml: no such file; ")
    assert "(did you mean 's.toml'?)" in messages("s.tml")[0]
    assert "(did you mean 'best-of-n'?)" in messages("best-off-n")[0]


@pytest.mark.parametrize("name", names("scenarios"))
def test_shipped_scenarios_load_by_name_and_survive_writing(name: str, write: Write):
    loaded = load_scenario(name)
    assert loaded.scenario.name == name
    assert loaded.scenario.description
    again = load_scenario(write(loaded.to_toml()))
    assert again.scenario == loaded.scenario
    assert again.to_toml() == loaded.to_toml()


def test_to_toml_makes_files_absolute_and_keeps_odd_text(write: Write, valid: str, tmp_path: Path):
    (tmp_path / "a.csv").write_text("arrival_s\n0\n1\n")
    text = valid.replace("rate_per_s = 1", 'process = "trace"\nfile = "a.csv"')
    loaded = load_scenario(write(text), ['description="tab\\t quote\\" \\u007f é 😀"'])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/s.toml").write_text(loaded.to_toml())
    again = load_scenario(tmp_path / "elsewhere/s.toml").scenario
    assert again.workload.arrivals.file == str((tmp_path / "a.csv").resolve())
    assert again.description == 'tab\t quote" \x7f é 😀'


def test_files_in_overrides_are_relative_to_the_current_folder(write: Write, tmp_path: Path):
    write("")
    (tmp_path / "mine.csv").write_text("arrival_s\n0\n")
    bundled = root("scenarios") / "chat.toml"
    loaded = load_scenario(bundled, ["workload.arrivals={process='trace'}", "workload.arrivals.file=mine.csv"])
    assert loaded.scenario.workload.arrivals.file == str((tmp_path / "mine.csv").resolve())


def test_examination_keeps_the_parts_that_are_right(write: Write, valid: str):
    examined = examine_scenario(write(valid.replace("max_tokens = 100", "max_tokens = -1")))
    assert examined.loaded is None
    assert examined.parts.max_tokens is None
    assert examined.parts.cluster is not None
    assert examined.parts.cluster.gpu == "h200-sxm"
