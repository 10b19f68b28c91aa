"""docs/scenarios.md covers every key of the format with its real range and default, and its example is valid."""

import re
from pathlib import Path

from ttsim_des.scenario.describe import KeyDoc, all_keys
from ttsim_des.scenario.load import load_scenario
from ttsim_des.scenario.rules import ARRIVAL_KEYS, STRATEGY_KEYS
from ttsim_des.scenario.schema import Arrivals
from ttsim_des.workload import strategies

TEXT = (Path(__file__).parents[2] / "docs/scenarios.md").read_text(encoding="utf-8")


def rows() -> dict[tuple[str, str], tuple[str, str]]:
    """(key, distribution) to (allowed, default) as the page has them."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    variant = ""
    for line in TEXT.splitlines():
        if line.startswith("#"):
            heading = re.search(r'distribution = "(\w+)"', line)
            variant = heading[1] if heading else ""
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and cells[0].startswith("`"):
            for key in re.findall(r"`([^`]+)`", cells[0]):
                found[key, variant] = (cells[2], cells[3])
    return found


def as_documented(doc: KeyDoc) -> tuple[str, str]:
    default = "required" if doc.required else (f"`{doc.default}`" if doc.default else "none")
    return doc.expected, default


def test_the_page_has_every_key_with_its_range_and_default_and_no_others():
    keys = {(doc.key, doc.variant): as_documented(doc) for doc in all_keys() if not doc.key.endswith(".distribution")}
    assert rows() == keys


def test_the_example_is_a_valid_scenario(tmp_path: Path):
    example = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    (tmp_path / "example.toml").write_text(example[1])
    assert load_scenario(tmp_path / "example.toml").scenario.workload.strategy.samples == 4


def test_the_rules_know_the_processes_and_strategies_that_there_are():
    processes = Arrivals.model_fields["process"].annotation.__args__  # type: ignore[union-attr]
    assert tuple(ARRIVAL_KEYS) == processes
    assert set(STRATEGY_KEYS) == set(strategies.STRATEGIES)
