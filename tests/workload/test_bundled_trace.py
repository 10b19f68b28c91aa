import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_bundled_trace_is_what_the_tool_makes(tmp_path):
    made = tmp_path / "made.csv"
    subprocess.run([sys.executable, ROOT / "tools/make_trace.py", made], check=True)
    assert made.read_bytes() == (ROOT / "traces/bursty-reasoning.csv").read_bytes()


@pytest.mark.parametrize(("run", "file"), [("_draft2_k3", "draft-model-steps.csv"), ("_ngram_k3", "ngram-steps.csv")])
def test_the_bundled_steps_are_what_the_tool_makes(run, file, tmp_path):
    command = [sys.executable, ROOT / "tools/draft_steps.py", ROOT / "tests/recorded/vllm_cpu/s6_spec"]
    subprocess.run([*command, tmp_path / "made.csv", "--run", run], check=True)
    assert (tmp_path / "made.csv").read_bytes() == (ROOT / "traces" / file).read_bytes()


def test_steps_of_a_recording_without_drafts_are_refused(tmp_path):
    command = [sys.executable, ROOT / "tools/draft_steps.py", ROOT / "tests/recorded/vllm_cpu/s6_spec"]
    done = subprocess.run(
        [*command, tmp_path / "made.csv", "--run", "_none_k0"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, (tmp_path / "made.csv").exists()) == (1, False)
    assert "no step verified a draft" in done.stderr
