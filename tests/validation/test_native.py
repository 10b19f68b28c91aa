"""The layout of our own recorders: the same run as in another layout, and what is wrong said by file and line."""

import json
import shutil
from pathlib import Path

import pytest

from ttsim_des.errors import InputError
from ttsim_des.recordings.native import read_native
from ttsim_des.validation.run import Variant, validate

RECORDED = Path(__file__).parents[1] / "recorded"
NATIVE = RECORDED / "native" / "poisson-light"


def test_both_layouts_of_one_run_say_the_same() -> None:
    (native,) = validate(NATIVE)
    (other,) = validate(RECORDED / "vllm_cpu" / "s2_poisson_light")
    assert native.recording.config == other.recording.config
    for name, row in native.metrics.items():
        assert row["simulated"] == pytest.approx(other.metrics[name]["simulated"], rel=1e-6), name
        assert (row["measured"] or 0) == pytest.approx(other.metrics[name]["measured"] or 0, rel=1e-6), name


def test_recorded_durations_leave_no_error() -> None:
    (result,) = validate(NATIVE, Variant(forced="durations"))
    assert abs(result.metrics["e2e_s.mean"]["error_pct"]) < 0.01


def test_a_recorded_schedule_leaves_step_times_alone() -> None:
    (result,) = validate(NATIVE, Variant(forced="schedule"))
    assert set(result.metrics) == {"steps_s.sum", "step_median_error_pct", "step_mae_pct"}
    assert result.replayed is None
    assert abs(result.metrics["steps_s.sum"]["error_pct"]) < 5


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NATIVE, tmp_path / "copy"))


def edit_request(folder: Path, **changes: object) -> None:
    path = folder / "requests.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]))


def edit_meta(folder: Path, **changes: object) -> None:
    path = folder / "recording.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt_tokens": 0}, "requests.jsonl:1: prompt_tokens"),
        ({"promptt": 3}, "requests.jsonl:1: promptt"),
        ({"first_token_s": -5.0}, "requests.jsonl:1: times run backwards"),
        ({"token_times_s": [1.0]}, "1 token_times_s of"),
        ({"prompt": [[0, 5]]}, "prompt ends at 5"),
        ({"id": "r1"}, "two requests have the same id"),
        ({"parent": "r11x"}, "unknown parent 'r11x'"),
    ],
)
def test_bad_requests_are_named(copy: Path, changes: dict, says: str) -> None:
    edit_request(copy, **changes)
    with pytest.raises(InputError, match=says):
        read_native(copy)


def test_bad_descriptions_are_named(copy: Path) -> None:
    edit_meta(copy, settings={"max_num_seqs": 8})
    with pytest.raises(InputError, match=r"recording.json: settings.max_num_batched_tokens"):
        read_native(copy)


def test_bad_steps_are_named(copy: Path) -> None:
    path = copy / "steps.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4].replace(",1,", ",one,", 1), ""]))
    with pytest.raises(InputError, match=r"steps.csv:5: "):
        read_native(copy)


def test_a_bundled_gpu_gives_step_times_and_blocks(copy: Path) -> None:
    settings = {"max_num_seqs": 64, "max_num_batched_tokens": 8192, "max_model_len": 4096}
    edit_meta(copy, gpu="h100-sxm", model="Qwen3-8B", settings=settings)
    (result,) = validate(copy)
    blocks = result.recording.config.num_gpu_blocks
    assert result.recording.derived["num_gpu_blocks"].startswith(f"{blocks}: not recorded; memory rules of vllm-0.32")
    assert "h100-sxm" in result.parameters["step times"]
    assert result.metrics["e2e_s.mean"]["simulated"] < result.metrics["e2e_s.mean"]["measured"] / 2  # a CPU's run
    assert result.recording.host.schedule_step_ns > 0


def test_blocks_of_unknown_hardware_are_asked_for(copy: Path) -> None:
    edit_meta(copy, settings={"max_num_seqs": 64, "max_num_batched_tokens": 8192, "max_model_len": 4096})
    with pytest.raises(InputError, match="num_gpu_blocks was not recorded"):
        read_native(copy)
