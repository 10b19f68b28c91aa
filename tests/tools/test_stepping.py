"""tools/stepping.py: it agrees, it repeats, and it can disagree."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from ttsim_des.latency.kernels import KernelStepModel

TOOL = Path(__file__).parents[2] / "tools/stepping.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("stepping_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_leap_equals_step(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stepping.py", "--runs", "4", "--seed", "3"])
    outputs = []
    for _ in range(2):
        assert tool.main() == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0].endswith("4 variations: leap = step\n")
    assert outputs[0] == outputs[1]


def test_a_wrong_slope_shows(tool, monkeypatch, capsys):
    original = KernelStepModel.decode_run

    def wrong(self, shape, max_steps):
        run = original(self, shape, max_steps)
        return run._replace(increment_ns=run.increment_ns + 1)

    monkeypatch.setattr(KernelStepModel, "decode_run", wrong)
    monkeypatch.setattr(sys, "argv", ["stepping.py", "--runs", "4", "--seed", "3"])
    assert tool.main() == 1
    shown = capsys.readouterr().out
    assert "ttsim-des run " in shown
    assert "DIFFERENCES in" in shown.splitlines()[-1]


def test_no_runs_is_refused(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stepping.py", "--runs", "0"])
    with pytest.raises(SystemExit, match="2"):
        tool.main()
    assert "--runs must be at least 1" in capsys.readouterr().err
