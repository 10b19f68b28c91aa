import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_bundled_trace_is_what_the_tool_makes(tmp_path):
    made = tmp_path / "made.csv"
    subprocess.run([sys.executable, ROOT / "tools/make_trace.py", made], check=True)
    assert made.read_bytes() == (ROOT / "traces/bursty-reasoning.csv").read_bytes()
