"""The two GPU recordings, where the data lie beside the checkout: within the tolerances of docs/validity.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from ttsim_des.validation.gates import Gate
from ttsim_des.validation.run import validate

DATA = Path(__file__).parents[3] / "shared" / "data" / "recordings"
LIMITS = {
    "rtxpro6000-qwen3-32b-tp2": {
        "e2e_s.mean": 0.75,
        "e2e_s.p99": 1.25,
        "tpot_s.mean": 0.75,
        "tpot_s.p99": 1.25,
        "output_tokens_per_s": 0.75,
        "ttft_s.mean": 1.25,
        "per_request_e2e_mae_pct": 0.45,
    },
    "rtx4090-llama31-8b": {
        "e2e_s.mean": 5,
        "tpot_s.mean": 5,
        "ttft_s.mean": 5,
        "output_tokens_per_s": 5,
        "per_request_e2e_mae_pct": 5,
    },
}


@pytest.mark.parametrize("name", LIMITS)
def test_gpu_run_is_met(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip("the recordings are not part of this repository (docs/validity.md says whose they are)")
    (result,) = validate(DATA / name)
    broken = [Gate(metric, limit).broken_by(result.metrics) for metric, limit in LIMITS[name].items()]
    assert [what for what in broken if what] == []
