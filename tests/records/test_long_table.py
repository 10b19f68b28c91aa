"""Tables that do not fit in memory say what the same ones in memory say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ttsim_des import api
from ttsim_des.records import recorder, store
from ttsim_des.records.long_table import LongTable
from ttsim_des.simulation import collect

RUNS = {
    "chat": ["experiment.queries=400"],
    "best-of-n": ["experiment.queries=40", "cluster.replicas=2", "workload.strategy.first=6"],
    "overload": ["experiment.queries=30"],
}


@pytest.fixture(params=RUNS)
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[api.Result, api.Result]:
    """A run in memory, and the same with small blocks on disk."""
    name = request.param
    small = api.run(api.load(name, [*RUNS[name], "output.steps=true"]))
    monkeypatch.setattr(store, "ROWS_IN_MEMORY", 100)
    for module in (recorder, collect):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4096)
    return small, api.run(api.load(name, [*RUNS[name], "output.steps=true"]))


def test_rows_on_disk_are_the_rows_in_memory(both: tuple[api.Result, api.Result], tmp_path: Path) -> None:
    small, long = both
    assert isinstance(long.tables.requests, LongTable)
    assert isinstance(long.tables.token_gaps, LongTable)
    whole = long.tables.in_memory()
    for name in ("queries", "requests", "steps", "token_gaps"):
        assert getattr(whole, name).equals(getattr(small.tables, name)), name
    small.save(tmp_path / "small")
    long.save(tmp_path / "long")
    for file in (tmp_path / "small").glob("*.parquet"):
        assert pq.read_table(tmp_path / "long" / file.name).equals(pq.read_table(file)), file.name
    assert long.check_laws() == []


def test_metrics_are_the_same(both: tuple[api.Result, api.Result]) -> None:
    small, long = (flat(result.summary) for result in both)
    assert small.keys() == long.keys()
    for key, value in small.items():
        # Sums of floats may differ in their last bits; counts, quantiles and texts may not.
        expected = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert long[key] == expected, key
    for key in small:
        if key.rsplit(".", 1)[-1].startswith("p"):
            assert long[key] == small[key], key


def test_slices_are_in_order(both: tuple[api.Result, api.Result]) -> None:
    table = both[1].tables.requests
    assert isinstance(table, LongTable)
    ids = np.concatenate([part["request_id"].to_numpy() for part in table.slices(50)])
    assert ids.tolist() == list(range(table.num_rows))


def flat(value, name: str = "") -> dict:
    if isinstance(value, dict):
        return {key: leaf for part, inner in value.items() for key, leaf in flat(inner, f"{name}.{part}").items()}
    return {name: value}
