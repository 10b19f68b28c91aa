"""Input that means harm: each ends in a plain message and exit code 2, at once, with nothing written."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ttsim_des.assets import root
from ttsim_des.cli import main
from ttsim_des.errors import InputError
from ttsim_des.scenario.load import LoadedScenario, load_scenario

Write = Callable[[str | bytes], str]
SHIPPED = (root("scenarios") / "best-of-n.toml").read_bytes()


def refused(*arguments: str) -> str:
    """Runs a command that must refuse its input; its error lines."""
    before = sorted(Path.cwd().rglob("*"))
    started = time.process_time()
    result: Result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert time.process_time() - started < 5
    assert sorted(Path.cwd().rglob("*")) == before
    return result.stderr


FILES = {
    "empty": (b"", "schema: missing"),
    "blank": (b"\n\n   \n", "schema: missing"),
    "binary": (bytes(range(256)) * 8, "is not UTF-8 text (byte 0x80)"),
    "control characters": (b"\x00\x01\x02", "not valid TOML"),
    "utf-16": ("schema = 1".encode("utf-16"), "is not UTF-8 text"),
    "too large": (b"#" * 300_000, "is larger than 256 KiB"),
    "deep array": (b"x = " + b"[" * 100_000, "nested too deeply"),
    "deep table": (b"x = " + b"{ a = " * 40_000, "nested too deeply"),
    "long key": (b"a." * 100_000 + b"a = 1", "a key of 100001 parts"),
    "long header": (b"[" + b"a." * 100_000 + b"a]", "a key of 100001 parts"),
    "many tables": (b"[[a]]\n" * 40_000, "a: unknown key"),
    "long number": (b"seed = " + b"9" * 100_000, "not valid TOML: exceeds the limit"),
    "long hexadecimal": (b"seed = 0x" + b"f" * 100_000, "seed: a number of more than 60 digits is out of range"),
    "json": (b'{"schema": 1}', "not valid TOML"),
    "list for a table": (b"schema = 1\nworkload = [1]\ncluster = 3\n", "workload: is a list; expected a table"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_scenario(name: str, write: Write):
    content, expected = FILES[name]
    path = write(content)
    for command in ("run", "check"):
        assert expected in refused(command, path)


VALUES = {
    "workload.arrivals.rate_per_s": ["-1", "0", "nan", "inf", "-inf", "1e400", "true", "'fast'", "[1]", "{a=1}"],
    "workload.strategy.samples": ["0", "-8", "8.0", "1_000_000_000", "0x" + "f" * 40, "nan", "2024-01-01"],
    "workload.max_tokens": ["0", "-1", "1e6", "10_000_001", "''"],
    "workload.output.mean": ["-5", "0.5", "nan", "1e300", "false"],
    "workload.output.query_sigma": ["-0.1", "5", "inf"],
    "cluster.tp": ["0", "-2", "1.5", "65", "'two'"],
    "cluster.replicas": ["0", "1_000_000"],
    "cluster.gpu": ["1", "[]"],
    "cluster.router": ["'random'", "0"],
    "engine.num_gpu_blocks": ["0", "1", "-1", "10_000_000_000", "nan"],
    "engine.gpu_memory_utilization": ["0", "1.01", "-1", "nan"],
    "engine.enable_prefix_caching": ["1", "'yes'", "0.0"],
    "experiment.queries": ["0", "-1", "1.0", "99999999999999999999"],
    "experiment.warmup_fraction": ["1", "-0.1", "nan"],
    "slo.query_latency_s": ["0", "-1", "inf"],
    "limits.requests": ["0", "1e3"],
    "seed": ["-1", "9223372036854775808", "1.0"],
    "name": ["''", "'..'", "'a/b'", "'../x'", "'a\\nb'", "1"],
    "schema": ["0", "2", "1.0", "'1'", "true"],
}


@pytest.mark.parametrize("key", VALUES)
def test_values_of_the_wrong_type_or_size(key: str, write: Write):
    path = write(SHIPPED)
    for value in VALUES[key]:
        with pytest.raises(InputError) as caught:
            load_scenario(path, [f"{key}={value}"])
        assert all(f"--set {key}=" in problem.where for problem in caught.value.problems), value
    assert f"--set {key}=" in refused("run", path, "--set", f"{key}={VALUES[key][0]}")


def test_paths_that_are_no_files(write: Write, tmp_path: Path):
    write(SHIPPED)
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "dangling.toml").symlink_to("nowhere")
    assert "is a directory" in refused("run", "folder.toml")
    assert "is not a regular file" in refused("run", "pipe.toml")
    assert "is not a regular file" in refused("run", "/dev/zero")
    assert "error: loop.toml: " in refused("run", "loop.toml")
    assert "error: dangling.toml: " in refused("run", "dangling.toml")
    assert "File name too long" in refused("run", "x" * 5000)
    assert "not a file name" in refused("run", "")


def test_a_run_directory_is_never_written_over(write: Write, tmp_path: Path):
    path = write(SHIPPED)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    assert "exists already" in refused("run", path, "--out", "taken")
    assert "exists already" in refused("run", path, "--out", "file")
    assert "not a directory" in refused("run", path, "--out", "file/run")
    assert "error: " in refused("run", path, "--out", "x" * 5000)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SHIPPED) - 1), st.integers(0, 3), st.binary(min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
@example(edits=[(0, 2, b"\xef\xbb\xbf")])
def test_mutated_scenarios_load_or_are_refused(edits: list[tuple[int, int, bytes]], tmp_path: Path):
    """Bytes overwritten, deleted, inserted or cut off: a scenario comes out or an InputError, nothing else."""
    data = SHIPPED
    for position, kind, content in edits:
        at = position % (len(data) + 1)
        head, tail = data[:at], data[at:]
        data = [head + content + tail[len(content) :], head + tail[1:], head + content + tail, head][kind]
    path = tmp_path / "mutated.toml"
    path.write_bytes(data)
    outcome = outcome_of(str(path))
    if isinstance(outcome, InputError):
        assert outcome.problems
        assert all(problem.where.startswith(str(path)) for problem in outcome.problems)
        assert str(outcome)
    else:
        path.write_text(outcome.to_toml(), encoding="utf-8")
        assert load_scenario(path).scenario == outcome.scenario


@settings(max_examples=150)
@given(text=st.text(max_size=40))
@example(text="seed=1 #")
@example(text="cluster.tp=\ud800")
def test_any_override_loads_or_is_refused(text: str):
    outcome = outcome_of("best-of-n", text)
    assert not isinstance(outcome, InputError) or f"--set {text.partition('=')[0]}" in str(outcome)


def outcome_of(path: str, *overrides: str) -> LoadedScenario | InputError:
    try:
        return load_scenario(path, overrides)
    except InputError as error:
        return error
