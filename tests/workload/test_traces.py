import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ttsim_des.assets import root
from ttsim_des.errors import InputError
from ttsim_des.workload.traces import read_trace


def test_columns(tmp_path):
    (tmp_path / "t.csv").write_text("id,arrival_s,prompt_tokens\nx,0,4\ny,0.000000001,5\nz,3.5,6\n")
    trace = read_trace("t.csv", tmp_path)
    assert trace.arrival_ns.tolist() == [0, 1, 3_500_000_000]
    assert trace.prompt_tokens.tolist() == [4, 5, 6]
    assert trace.output_tokens is None
    assert trace.first(2).prompt_tokens.tolist() == [4, 5]
    assert trace.rate_per_s() == pytest.approx(2 / 3.5)
    assert trace.first(1).rate_per_s() is None


def test_nanoseconds_survive(tmp_path):
    times = np.sort(np.random.default_rng(3).integers(0, 2**51, 2000))
    (tmp_path / "t.csv").write_text("arrival_s\n" + "".join(f"{t // 10**9}.{t % 10**9:09d}\n" for t in times.tolist()))
    assert read_trace("t.csv", tmp_path).arrival_ns.tolist() == times.tolist()
    pq.write_table(pa.table({"arrival_s": times / 1e9}), tmp_path / "t.parquet")
    assert read_trace("t.parquet", tmp_path).arrival_ns.tolist() == times.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time\n1\n", "no column 'arrival_s'"),
        ("arrival_s\n", "has no rows"),
        ("arrival_s\n0\n2\n1.5\n", "data row 3: 1.5 comes before the row above it; expected rows in order of arrival"),
        ("arrival_s\n-1\n", "data row 1: -1"),
        ("arrival_s\n1700000000.5\n", "data row 1: 1700000000.5; expected a number from 0 to 1e+09"),
        ("arrival_s\nnan\n", "data row 1: nothing"),
        ("arrival_s\n0\n1e400\n", "data row 2: inf"),
        ("arrival_s\n2026-01-01T00:00:00\n", "holds timestamp"),
        ("arrival_s,output_tokens\n0,0\n", "column 'output_tokens'"),
        ("arrival_s,prompt_tokens\n0,1.5\n", "data row 1: 1.5"),
    ],
)
def test_unusable(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError) as error:
        read_trace("t.csv", tmp_path)
    assert message in str(error.value)
    assert {problem.key for problem in error.value.problems} == {"workload.arrivals.file"}


def test_a_bundled_trace_is_found_by_its_name(tmp_path):
    bundled = sorted(path.name for path in root("traces").glob("*.csv") if not re.search("bank|steps", path.name))
    assert bundled
    for name in bundled:
        trace = read_trace(name, tmp_path)
        assert trace.prompt_tokens is not None
        assert trace.output_tokens is not None
    with pytest.raises(InputError, match=f"did you mean '{bundled[0]}'"):
        read_trace(bundled[0].replace("s", "z", 1), tmp_path)
    (tmp_path / bundled[0]).write_text("arrival_s\n0\n")
    assert len(read_trace(bundled[0], tmp_path)) == 1
