"""The strategy that a scenario names: a bundled one, or a function of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.scenario.schema import StrategyTable
from ttsim_des.workload.handle import Strategy
from ttsim_des.workload.strategies import STRATEGIES
from ttsim_des.workload.strategies.graphs import read_graphs

KEY = "workload.strategy.name"


def resolve_strategy(table: StrategyTable, base_dir: Path) -> tuple[Strategy, StrategyTable]:
    """The strategy, and its settings with the files that they name found; InputError where one is not there."""
    if table.graph is not None:
        path = base_dir / table.graph
        read_graphs(path)
        table = table.model_copy(update={"graph": str(path)})
    if table.name in STRATEGIES:
        return STRATEGIES[table.name], table
    return _of_user(table.name, base_dir), table


def strategy_file(name: str, base_dir: Path) -> Path | None:
    """The file that holds a user's strategy, where it is named by file."""
    source, colon, _ = name.rpartition(":")
    return base_dir / source if colon and source.endswith(".py") else None


def _of_user(name: str, base_dir: Path) -> Strategy:
    """The function behind `file.py:function` (relative to the scenario) or `package.module:function`."""
    source, _, function = name.rpartition(":")
    path = strategy_file(name, base_dir)
    try:
        module = importlib.import_module(source) if path is None else _load(path)
    except Exception as error:  # whatever a user's module may raise when it is run
        raise bad_input(f"cannot load {source}: {type(error).__name__}: {error}", key=KEY) from None
    found = getattr(module, function, None)
    if not callable(found):
        known = [each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_")]
        raise bad_input(f"{source} has no function {function!r}", key=KEY, nearest=nearest_name(function, known))
    strategy: Strategy = found
    return strategy


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(str(path))
    name = f"ttsim_des_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
