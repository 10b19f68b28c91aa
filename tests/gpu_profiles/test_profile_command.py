"""`ttsim-des profile show`, `check` and `diff`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from ttsim_des import assets
from ttsim_des.cli import main
from ttsim_des.gpu_profiles.curves import curves_of
from ttsim_des.latency.profile import COLUMNS, load_profile

BUNDLED = assets.root("profiles") / "gpus"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["profile", *arguments])


def as_json(*arguments: str) -> Any:
    told = invoke(*arguments, "--json")
    return json.loads(told.output)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED / "a100-sxm", tmp_path / "mine"))


def change(directory: Path, family: str, factor: Any) -> None:
    """Multiply the latencies of a table by a number or an array of them."""
    table = pq.read_table(directory / f"{family}.parquet")
    latency = table["latency_us"].to_numpy() * factor
    place = table.column_names.index("latency_us")
    pq.write_table(table.set_column(place, "latency_us", pa.array(latency)), directory / f"{family}.parquet")


def test_show() -> None:
    found = as_json("show", "h200-sxm")
    assert found["device"] == "NVIDIA H200"
    assert found["models"]["Qwen3-8B"]["tp"] == [1, 2, 4, 8]
    assert found["models"]["Qwen3-30B-A3B+ep"]["tp"] == [2, 4, 8]
    assert {(row["family"], row["label"]) for row in found["tables"]} >= {("moe", "mxfp4"), ("gemm", "fp8")}
    text = invoke("show", "a100-sxm", "--dtype", "fp8")
    assert text.exit_code == 0
    assert "not: GPU profile a100-sxm has no fp8" in text.output


def test_check_counts_falls_and_gaps(copy: Path) -> None:
    before = {row["family"]: row for row in as_json("check", str(copy))["tables"] if row["label"] in ("bf16", "graph")}
    rows = pq.read_table(copy / "context_attention.parquet").num_rows
    change(copy, "context_attention", np.where(np.arange(rows) % 2, 0.5, 1.0))
    told = invoke("check", str(copy))
    assert told.exit_code == 0
    after = {row["family"]: row for row in as_json("check", str(copy))["tables"]}
    assert after["context_attention"]["falls_pct"] > before["context_attention"]["falls_pct"] + 5
    assert after["context_attention"]["left_out_median_pct"] > 3 * before["context_attention"]["left_out_median_pct"]
    assert after["gemm"] == before["gemm"]


def test_check_finds_what_cannot_be(copy: Path) -> None:
    change(copy, "gemm", 0.5)
    told = invoke("check", str(copy))
    assert told.exit_code == 3
    assert "compute faster than the peak" in told.output
    assert "faster than the memory's bandwidth" in told.output


def test_bundled_profiles_are_possible() -> None:
    for name in assets.names("gpus"):
        assert invoke("check", name).exit_code == 0


def test_a_profile_does_not_differ_from_itself() -> None:
    found = as_json("diff", "h200-sxm", "h200-sxm", "--model", "Qwen3-8B", "--tp", "2")
    assert found["largest_pct"] == 0
    assert all(row["compared"] == row["points"] for row in found["tables"])
    assert len(found["steps"]) == 19


def test_difference_is_that_of_the_tables(copy: Path) -> None:
    change(copy, "gemm", 1.1)
    told = invoke("diff", "a100-sxm", str(copy), "--within", "5")
    assert told.exit_code == 3
    assert invoke("diff", "a100-sxm", str(copy), "--within", "10.1").exit_code == 0
    found = as_json("diff", "a100-sxm", str(copy), "--model", "DeepSeek-R1-Distill-Qwen-7B")
    rows = {row["family"]: row for row in found["tables"]}
    assert rows["gemm"]["mean_pct"] == pytest.approx(10, abs=0.01)
    assert rows["decode_attention"]["max_abs_pct"] == 0
    steps = {row["step"]: row for row in found["steps"]}
    assert 5 < steps["decode, 1 x 256 tokens"]["difference_pct"] < 10
    assert not steps["decode, 256 x 16384 tokens"]["in_domain"]


def test_what_was_thinned_comes_back(copy: Path) -> None:
    """Every second point of a straight table left out: no difference; of a crooked one: the difference is said."""
    table = pq.read_table(copy / "all_reduce.parquet").to_pylist()
    for factor, largest in ((1.0, 1e-4), (1.02, 2.0)):
        rows = []
        for mode in ("graph", "eager"):
            rows += [
                {"mode": mode, "ranks": 2, "bytes": 1024 * i, "latency_us": (5.0 + i) * (factor if i % 2 else 1.0)}
                for i in range(1, 40)
            ]
        assert rows[0].keys() == table[0].keys()
        for directory, kept in (
            (copy, rows),
            (copy.parent / "thin", [row for row in rows if row["bytes"] // 1024 % 2]),
        ):
            if not directory.exists():
                shutil.copytree(copy, directory)
            pq.write_table(pa.Table.from_pylist(kept), directory / "all_reduce.parquet")
        found = as_json("diff", str(copy), str(copy.parent / "thin"))
        reduced = [row for row in found["tables"] if row["family"] == "all_reduce"]
        assert max(row["max_abs_pct"] for row in reduced) == pytest.approx(largest, rel=0.1, abs=1e-4)


def test_tables_of_one_alone() -> None:
    found = {(row["family"], row["label"]): row for row in as_json("diff", "h200-sxm", "a100-sxm")["tables"]}
    assert "compared" not in found["gemm", "fp8"]
    assert "not in the second" in invoke("diff", "h200-sxm", "a100-sxm").output


@pytest.mark.parametrize("command", [("show", "h201"), ("check", "./none"), ("diff", "h200-sxm", "h201")])
def test_unknown_profile(command: tuple[str, ...]) -> None:
    told = invoke(*command)
    assert told.exit_code == 2
    assert "expected one of" in told.output


def test_curves_are_all_rows_each_once() -> None:
    profile = load_profile("l40s")
    for family in COLUMNS:
        for label in profile.labels(family):
            curves = list(curves_of(profile, family, label))
            assert sum(len(curve.x) for curve in curves) == len(profile.tables[family][label]["latency_us"])
            assert all((np.diff(curve.x) > 0).all() for curve in curves)
            assert len({curve.key for curve in curves}) == len(curves)
