from collections.abc import Callable
from pathlib import Path

import pytest

VALID = """\
schema = 1
name = "small"

[workload]
max_tokens = 100
prompt = { distribution = "constant", tokens = 5 }

[workload.output]
distribution = "lognormal"
mean = 50
max = 100

[workload.arrivals]
rate_per_s = 1

[cluster]
gpu = "h200-sxm"
model = "Qwen2.5-7B"
"""


@pytest.fixture
def valid() -> str:
    return VALID


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], str]:
    """Writes a scenario into the current (temporary) folder and gives its name."""
    monkeypatch.chdir(tmp_path)

    def to_file(text: str | bytes) -> str:
        (tmp_path / "s.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "s.toml"

    return to_file
