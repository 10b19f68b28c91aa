import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factory import best_of, context

from ttsim_des.errors import InputError
from ttsim_des.metrics.summary import summarise
from ttsim_des.records.tables import Tables
from ttsim_des.report import rundir
from ttsim_des.report.manifest import digest, make_manifest
from ttsim_des.report.rundir import read_run, write_run

TABLES = best_of(30, 3).tables()


def write(out: Path, *, steps: bool = True, tables: Tables = TABLES) -> Path:
    summary = summarise(tables, context())
    manifest = make_manifest(seed=7, inputs={"model": Path(__file__)}, wall_s=1.5, started="2025-01-01T00:00:00Z")
    return write_run(out, summary=summary, tables=tables, scenario_toml="schema = 1\n", manifest=manifest, steps=steps)


def test_round_trip(tmp_path: Path) -> None:
    saved = read_run(write(tmp_path / "deep" / "run"))
    assert saved.has_steps
    assert saved.summary == summarise(TABLES, context())
    assert saved.tables.end_ns == TABLES.end_ns
    for name in ("queries", "requests", "steps", "token_gaps"):
        assert getattr(saved.tables, name).equals(getattr(TABLES, name))
    assert summarise(saved.tables, context()) == saved.summary
    assert (saved.path / "scenario.toml").read_text() == "schema = 1\n"
    assert (saved.path.stat().st_mode & 0o777) == 0o755


def test_manifest_names_versions_seeds_and_digests(tmp_path: Path) -> None:
    saved = read_run(write(tmp_path / "run"))
    assert saved.manifest["versions"].keys() >= {"ttsim-des", "python", "simpy", "numpy", "pyarrow"}
    assert (saved.manifest["seed"], saved.manifest["wall_s"]) == (7, 1.5)
    assert saved.manifest["inputs"]["model"] == {"name": Path(__file__).name, "digest": digest(Path(__file__))}
    written = {file.name for file in saved.path.iterdir()} - {"manifest.json"}
    assert saved.manifest["files"].keys() == written
    assert all(saved.manifest["files"][name] == digest(saved.path / name) for name in written)
    assert str(tmp_path) not in (saved.path / "manifest.json").read_text()


def test_steps_only_when_asked(tmp_path: Path) -> None:
    saved = read_run(write(tmp_path / "run", steps=False))
    assert not saved.has_steps
    assert saved.tables.steps.num_rows == 0
    assert sorted(file.name for file in saved.path.iterdir()) == [
        "manifest.json",
        "queries.parquet",
        "requests.parquet",
        "scenario.toml",
        "summary.json",
    ]


def test_same_tables_same_bytes_however_chunked(tmp_path: Path) -> None:
    chunked = pa.concat_tables([TABLES.requests.slice(0, 11), TABLES.requests.slice(11)])
    chunked = chunked.replace_schema_metadata({b"pandas": b"{}"})
    other = Tables(TABLES.queries, chunked, TABLES.steps, TABLES.token_gaps, TABLES.end_ns)
    first, second = write(tmp_path / "a"), write(tmp_path / "b", tables=other)
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert b"pandas" not in (second / "requests.parquet").read_bytes()


def test_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="never overwritten"):
        write(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        write(tmp_path / "file")
    with pytest.raises(InputError, match="not a directory"):
        write(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(rundir.pq.ParquetWriter, "write_table", fail)
    expected = InputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected):
        write(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def problems(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_run(path)
    return str(caught.value)


def test_missing_and_damaged_files_are_all_named(tmp_path: Path) -> None:
    assert "no such run directory" in problems(tmp_path / "nowhere")
    run = write(tmp_path / "run")
    (run / "summary.json").unlink()
    whole = (run / "queries.parquet").read_bytes()
    (run / "queries.parquet").write_bytes(whole[: len(whole) // 2])
    (run / "steps.parquet").unlink()
    text = problems(run)
    assert "summary.json: this file of the run is missing" in text
    assert "queries.parquet: this file is damaged or truncated" in text
    assert "steps.parquet: this file of the run is missing" in text


@pytest.mark.parametrize("cut", [0, 3, 50, -1])
def test_truncated_parquet(tmp_path: Path, cut: int) -> None:
    run = write(tmp_path / "run")
    file = run / "requests.parquet"
    file.write_bytes(file.read_bytes()[:cut])
    assert "damaged or truncated" in problems(run)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "damaged"), ("[]", "no schema version"), ('{"schema": 99}', "schema 99")]
)
def test_bad_json(tmp_path: Path, text: str, message: str) -> None:
    run = write(tmp_path / "run")
    (run / "summary.json").write_text(text)
    assert message in problems(run)


def test_newer_foreign_and_misshapen_parquet(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    newer = TABLES.queries.replace_schema_metadata({b"ttsim_des.schema": b"3", b"ttsim_des.end_ns": b"1"})
    pq.write_table(newer, run / "queries.parquet")
    assert "has schema 3; expected schema 2; a newer ttsim-des can read it" in problems(run)
    pq.write_table(TABLES.queries.replace_schema_metadata(None), run / "queries.parquet")
    assert "not written by ttsim-des" in problems(run)
    narrow = TABLES.queries.drop_columns(["status"])
    pq.write_table(
        narrow.replace_schema_metadata({b"ttsim_des.schema": b"2", b"ttsim_des.end_ns": b"1"}), run / "queries.parquet"
    )
    assert "columns of this file" in problems(run)


def test_manifest_of_a_directory_and_of_a_lost_input(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "meta.toml").write_text("a = 1")
    before = digest(tmp_path / "profile")
    (tmp_path / "profile" / "meta.toml").write_text("a = 2")
    assert digest(tmp_path / "profile") != before
    with pytest.raises(InputError, match="cannot read trace"):
        make_manifest(seed=0, inputs={"trace": tmp_path / "gone.csv"}, wall_s=0)


def test_summary_json_is_plain(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    assert json.loads((run / "summary.json").read_text())["schema"] == 1
