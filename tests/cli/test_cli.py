"""The command line around the simulation: help, exit codes, streams, names."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

from ttsim_des.assets import names
from ttsim_des.cli import main
from ttsim_des.cli.group import COMMANDS
from ttsim_des.cli.output import choose_run_directory
from ttsim_des.cli.progress import _Bar
from ttsim_des.errors import InputError, NotValidError, bad_input

HEAVY = ("numpy", "pandas", "pyarrow", "scipy", "simpy", "pydantic", "matplotlib", "seaborn", "rich", "tree_sitter")


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from ttsim_des.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str):
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_an_unknown_command_names_the_nearest():
    result = CliRunner().invoke(main, ["rnu"])
    assert result.exit_code == 2
    assert "Did you mean 'run'?" in result.stderr


def test_version():
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("ttsim-des, version 0.")


def test_python_runs_the_package():
    shown = subprocess.run([sys.executable, "-m", "ttsim_des", "rnu"], capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert shown.stderr.startswith("Usage: ttsim-des ")


def test_list_has_every_bundled_name():
    everything = CliRunner().invoke(main, ["list"]).stdout
    for kind in ("scenarios", "gpus", "models", "engines"):
        assert f"{kind}:\n" in everything
        one_kind = CliRunner().invoke(main, ["list", kind]).stdout
        assert [line.split()[0] for line in one_kind.splitlines()] == names(kind)
        assert all(f"  {name}" in everything for name in names(kind))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (bad_input("wrong", key="a.b", expected="right"), 2, "error: a.b: wrong; expected right\n"),
        (
            InputError([*bad_input("one").problems, *bad_input("two").problems]),
            2,
            "error: one\nerror: two\n2 problems\n",
        ),
        (NotValidError("a law broke"), 4, "error: a law broke\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError(), 4, "error: not enough memory for this scenario\n"),
    ],
)
def test_errors_become_messages_and_exit_codes(error: BaseException, code: int, message: str):
    with mock.patch("ttsim_des.scenario.load.load_scenario", side_effect=error):
        result = CliRunner().invoke(main, ["run", "best-of-n"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_run_directories_are_numbered_and_never_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert choose_run_directory(None, "x") == Path("runs/x")
    Path("runs/x").mkdir(parents=True)
    Path("runs/x-2").symlink_to("nowhere")
    assert choose_run_directory(None, "x") == Path("runs/x-3")
    assert choose_run_directory("new/deep", "x") == Path("new/deep")
    with pytest.raises(InputError, match="exists already"):
        choose_run_directory("runs/x-2", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_before_the_run(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission"):
        choose_run_directory(str(tmp_path / "run"), "x")


def test_the_progress_bar_waits_for_a_second_and_then_shows_the_count(monkeypatch: pytest.MonkeyPatch):
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    bar = _Bar(10)
    bar.update(1, 10)
    assert bar._bar is None
    now_s += 1.5
    with mock.patch("rich.progress.Progress") as drawn:
        bar.update(3, 10)
        bar.close()
    assert drawn.return_value.update.call_args.kwargs == {"completed": 3, "total": 10}
    assert drawn.return_value.stop.called
