"""The bench tool as a module, and its cases as cut-down runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType

import pytest
from cut_down import CUTS, TOOL, Counted, CountingModel

from ttsim_des import api


@pytest.fixture(scope="session")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_tool", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_tool"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_cut(bench: ModuleType) -> Callable[[str, str], Counted]:
    """Run a cut-down case (once a session) with a counting step model."""

    @cache
    def run(case: str, stepping: str) -> Counted:
        loaded = bench.load_case(case, stepping, 1.0, [*CUTS[case], "output.steps=true"])
        deployed = api.deploy(loaded.scenario, loaded.base_dir)
        model = CountingModel(deployed.step_model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "deploy", lambda *_: replace(deployed, step_model=model))
            result = api.run(loaded)
        return Counted(result, bench.count(result), model)

    return run
