"""Closed-loop tables: how they are read, what their simulations are, and fits that find what was hidden in them."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ttsim_des.cli import main
from ttsim_des.errors import InputError
from ttsim_des.latency.calibration import UNFITTED, Calibration, read_calibration
from ttsim_des.latency.host import HostOverhead
from ttsim_des.validation.calibrate import ClosedTarget, RecordingTarget, fit
from ttsim_des.validation.closed_loop import Recipe, simulate_row, simulate_rows
from ttsim_des.validation.closed_table import read_table
from ttsim_des.validation.run import Variant

RECORDED = Path(__file__).parents[1] / "recorded"
TABLE = RECORDED / "closed_loop.csv"
GOLDEN = RECORDED / "vllm_cpu" / "golden" / "fanout16"


def test_measured_rows_are_met() -> None:
    """The six bundled rows are among those that the engine file's host time was fitted to."""
    results = simulate_rows(read_table(TABLE).rows, Recipe())
    assert len(results) == 6
    for result in results:
        assert result.tpot_ratio == pytest.approx(1, abs=0.05), result.row.name
        assert result.ttft_ratio == pytest.approx(1, abs=0.45), result.row.name


def test_asynchronous_scheduling_would_be_too_fast() -> None:
    results = simulate_rows(read_table(TABLE, ["tp=4"]).rows, Recipe(async_scheduling=True))
    assert all(result.tpot_ratio < 0.93 for result in results)


def test_a_lone_request_by_hand() -> None:
    """One request at a time, equal lengths: every step is a decode of one, and TTFT is one prompt step."""
    (row, *_) = read_table(TABLE, ["tp=2"]).rows
    one = replace(row, concurrency=1, output_tokens=3)
    slow = Recipe(jitter=0, requests_per_concurrency=2, calibration=Calibration(step_us=1e6, sequence_us=0))
    result, fast = simulate_row(one, slow), simulate_row(one, replace(slow, calibration=Calibration(step_us=0)))
    assert result.tpot_s - fast.tpot_s == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (["tpp=2"], "no column 'tpp'.*did you mean 'tp'"),
        (["tp"], "'tp' is no condition"),
        (["tp=3"], "no row is left"),
    ],
)
def test_bad_conditions_are_named(where: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_table(TABLE, where)


def test_bad_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = TABLE.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace("tpot_ms", "tpot"), *lines[1:]]))
    with pytest.raises(InputError, match=r"t.csv:1: there is no column for tpot_ms"):
        read_table(path)
    path.write_text("\n".join([lines[0], lines[1].replace("18.037", "-1")]))
    with pytest.raises(InputError, match=r"t.csv:2: tpot_ms = '-1'"):
        read_table(path)
    path.write_text("\n".join([lines[0], *(line.replace("Qwen3-32B", "Qwen9-32B") for line in lines[1:])]))
    with pytest.raises(InputError, match=r"none of the 6 rows can be simulated .*no geometry of Qwen9-32B"):
        read_table(path)


def test_rows_of_other_engines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    head, *rest = TABLE.read_text().splitlines()
    path.write_text("\n".join([f"{head},backend", f"{rest[0]},trtllm", f"{rest[1]},vllm"]))
    table = read_table(path)
    assert len(table.rows) == 1
    assert table.skipped == {"backend = trtllm": 1}


def test_a_fit_finds_what_was_hidden() -> None:
    rows = read_table(TABLE, ["tp=4"]).rows
    hidden = Calibration(kernel_scale=1.1, sequence_us=70.0)
    truth = simulate_rows(rows, Recipe(calibration=hidden))
    made = [replace(row, tpot_s=result.tpot_s, ttft_s=result.ttft_s) for row, result in zip(rows, truth, strict=True)]
    found = fit([ClosedTarget("made", made, Recipe())], ["kernel_scale", "sequence_us"])
    assert found.calibration.kernel_scale == pytest.approx(1.1, abs=0.002)
    assert found.calibration.sequence_us == pytest.approx(70.0, abs=2)
    assert found.after["made"]["tpot_mape_pct"] < 0.1 < found.before["made"]["tpot_mape_pct"]


def test_a_recording_can_be_fitted_too() -> None:
    """A golden run's steps follow its formula, so the scale that fits it is 1."""
    target = RecordingTarget(GOLDEN, Variant())
    found = fit([target], ["kernel_scale"])
    assert found.calibration.kernel_scale == pytest.approx(1, abs=1e-3)
    assert abs(target.errors(Calibration(kernel_scale=1.2))["e2e_s.mean"]) > 5


def test_a_fit_of_too_little_is_refused() -> None:
    rows = read_table(TABLE, ["tp=4", "concurrency=8"]).rows
    with pytest.raises(InputError, match="1 measurements cannot tell 2 parameters"):
        fit([ClosedTarget("one", rows, Recipe())], ["step_us", "sequence_us"])


def test_host_times_are_split_as_before() -> None:
    base = HostOverhead(300, 30, 100, 10, 5)
    assert Calibration(step_us=4, sequence_us=0.4).host(base) == HostOverhead(3000, 300, 1000, 100, 5)
    assert UNFITTED.host(base) == base
    assert Calibration(step_us=1, request_us=2).host(HostOverhead()) == HostOverhead(1000, 0, 0, 0, 2000)


def test_a_calibration_is_written_with_its_provenance_and_used(tmp_path: Path) -> None:
    out = tmp_path / "fitted.toml"
    arguments = ["calibrate", str(TABLE), "--where", "tp=4", "--report-where", "tp=2", "--fit", "step_us"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    written = tomllib.loads(out.read_text())
    assert written["parameters"] == {"step_us": pytest.approx(read_calibration(out).step_us, abs=1e-3)}
    assert set(written["fitted_on"]) == {"before", "after"}
    assert set(written["reported_on"]) == {"closed_loop.csv tp=2"}
    assert written["provenance"]["closed_loop.csv"].startswith("sha256 ")
    again = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    assert again.exit_code == 2
    assert "exists already" in again.output
    run = ["check", "chat", "--set", "cluster.engine=vllm-0.12", "--set", f"latency.calibration={out}"]
    assert "calibration" in CliRunner().invoke(main, run).output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("schema = 1\n[parameters]\nstep_us = -1\n", "parameters.step_us"),
        ("schema = 2\n[parameters]\n", "schema"),
        ("schema = 1\n[parameters]\nsteps_us = 1\n", "parameters.steps_us"),
        ("schema = ", "is no TOML"),
    ],
)
def test_bad_calibrations_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_calibration(path)


def test_the_command_line_compares_and_gates() -> None:
    arguments = ["validate", "--closed-loop", str(TABLE), "--where", "tp=2", "--where", "concurrency=8"]
    done = CliRunner().invoke(main, [*arguments, "--fail-if", "tpot_mape_pct > 0.001%"])
    assert done.exit_code == 3
    assert "h100-sxm Qwen3-32B tp2 1024/128 x8" in done.output
    assert CliRunner().invoke(main, [*arguments, str(GOLDEN)]).exit_code == 2
    assert CliRunner().invoke(main, ["validate"]).exit_code == 2
