import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ttsim_des import assets
from ttsim_des.errors import InputError
from ttsim_des.latency.gemm import gemm_curve
from ttsim_des.latency.profile import COLUMNS, load_profile, read_profile

BUNDLED = assets.root("profiles") / "gpus" / "a100-sxm"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    directory = tmp_path / "mine"
    shutil.copytree(BUNDLED, directory)
    return directory


def refused(directory: Path) -> str:
    with pytest.raises(InputError) as error:
        read_profile(directory)
    assert error.value.problems[0].key == "cluster.gpu"
    return str(error.value)


def test_bundled_profiles_can_be_read_and_say_where_they_come_from() -> None:
    assert assets.names("gpus") == ["a100-sxm", "b200-sxm", "gb200", "h100-sxm", "h200-sxm", "l40s", "rtx-pro-6000"]
    for name in assets.names("gpus"):
        profile = load_profile(name)
        assert "aiconfigurator-core" in profile.meta.source
        assert "Apache-2.0" in profile.meta.licence
        assert set(profile.tables) == set(COLUMNS)
        dtypes = ["bf16"] if name == "a100-sxm" else ["bf16", "fp8"]
        assert profile.labels("gemm") == profile.labels("decode_attention") == dtypes
        assert set(profile.labels("moe")) >= {"bf16"}
        assert profile.labels("all_reduce") == ["eager", "graph"]


def test_bundled_profiles_are_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.parent.rglob("*")) < 4_000_000


def test_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        load_profile("h200_sxm")
    assert error.value.problems[0].nearest == "h200-sxm"


def test_newer_schema(copy: Path) -> None:
    meta = copy / "meta.toml"
    meta.write_text(meta.read_text().replace("schema = 1", "schema = 2"))
    message = refused(copy)
    assert str(meta) in message
    assert "schema version 2, newer than" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "", "no schema version"),
        ("memory_gib = 79.25", "", "lacks memory_gib"),
        ("memory_gib = 79.25", "memory_gib = nan", "memory_gib = nan"),
        ("memory_gib = 79.25", "memory_gib = -1", "memory_gib = -1"),
        ("memory_gib = 79.25", "memory_gib = [", "cannot be read"),
        ("[peak_flops]", "[peak]", "lacks peak_flops"),
    ],
)
def test_bad_meta(copy: Path, old: str, new: str, message: str) -> None:
    meta = copy / "meta.toml"
    assert old in meta.read_text()
    meta.write_text(meta.read_text().replace(old, new))
    assert message in refused(copy)


@pytest.mark.parametrize("family", COLUMNS)
def test_truncated_table(copy: Path, family: str) -> None:
    file = copy / f"{family}.parquet"
    whole = file.read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        message = refused(copy)
        assert str(file) in message
        assert "truncated or not Parquet" in message


def test_damaged_inside(copy: Path) -> None:
    file = copy / "gemm.parquet"
    whole = bytearray(file.read_bytes())
    for position in range(100, 20_000, 7):
        whole[position] ^= 0xFF
    file.write_bytes(bytes(whole))
    assert str(file) in refused(copy)


def test_missing_table_and_columns(copy: Path) -> None:
    table = pq.read_table(copy / "gemm.parquet")
    (copy / "gemm.parquet").unlink()
    assert "gemm.parquet is missing" in refused(copy)
    pq.write_table(table.drop_columns(["k", "latency_us"]), copy / "gemm.parquet")
    assert "lacks the columns k, latency_us" in refused(copy)


def test_a_single_gpu_needs_no_all_reduce(copy: Path) -> None:
    (copy / "all_reduce.parquet").unlink()
    assert read_profile(copy).values("all_reduce", "graph", "ranks") == []
    pq.write_table(pq.read_table(BUNDLED / "all_reduce.parquet").drop_columns(["mode"]), copy / "all_reduce.parquet")
    assert "lacks the columns mode" in refused(copy)


def test_a_directory_is_named_with_a_slash(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    assert load_profile("./mine").meta.name == "mine"
    assert load_profile(str(copy)).meta.device == load_profile("a100-sxm").meta.device
    with pytest.raises(InputError, match=r"no directory \./none"):
        load_profile("./none")
    with pytest.raises(InputError, match="unknown GPU 'mine'"):
        load_profile("mine")


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        ([1.0, float("nan")], "not positive"),
        ([1.0, -3.0], "not positive"),
        ([1.0, None], "column latency_us"),
        (["1", "2"], "column latency_us"),
        ([], "no rows"),
    ],
)
def test_bad_values(copy: Path, latency: list[object], message: str) -> None:
    count = len(latency)
    columns = {"mode": ["graph"] * count, "ranks": [2] * count, "bytes": list(range(1, count + 1))}
    pq.write_table(pa.table(columns | {"latency_us": latency}), copy / "all_reduce.parquet")
    assert message in refused(copy)


def test_measured_products_are_returned_as_measured() -> None:
    profile = load_profile("h200-sxm")
    rows = profile.select("gemm", "bf16", n=4096, k=4096)
    curve = gemm_curve(profile, "bf16", 4096, 4096)
    for m, latency_us in zip(rows["m"].tolist(), rows["latency_us"].tolist(), strict=True):
        assert curve.at(m) == pytest.approx(latency_us)
    low, high = (float(rows["latency_us"][rows["m"] == m][0]) for m in (513, 768))
    assert curve.at(640.5) == pytest.approx((low + high) / 2)


@pytest.mark.parametrize(("n", "k"), [(3072, 4096), (12_288, 5120), (4096, 10_240), (2560, 2560)])
def test_interpolated_products_are_near_measured_ones(n: int, k: int) -> None:
    """Leave a measured shape out and interpolate it from its neighbours."""
    whole = load_profile("h200-sxm")
    gemm = whole.tables["gemm"]["bf16"]
    keep = (gemm["n"] != n) & (gemm["k"] != k)
    tables = dict(whole.tables) | {"gemm": {"bf16": {name: values[keep] for name, values in gemm.items()}}}
    without = type(whole)(whole.meta, tables)
    measured, interpolated = gemm_curve(whole, "bf16", n, k), gemm_curve(without, "bf16", n, k)
    errors = [interpolated.at(m) / measured.at(m) - 1 for m in measured.x]
    assert np.median(np.abs(errors)) < 0.08
