import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from ttsim_des import rng
from ttsim_des.rng import Streams


def test_numbers_do_not_depend_on_chunks():
    streams = Streams(7, 3)
    whole = streams.uniforms("a", 0, 1000, 5)
    for size in (1, 7, 333):
        parts = [streams.uniforms("a", first, min(size, 1000 - first), 5) for first in range(0, 1000, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(Streams(7, 3).uniforms("a", 990, 10, 5), whole[990:])


def test_far_entities_are_reachable_and_distinct():
    streams = Streams(0)
    far = streams.uniforms("a", 10**12, 4, 8)
    assert len(np.unique(np.concatenate([far, streams.uniforms("a", 0, 4, 8)]))) == 64


def test_every_part_of_the_name_makes_another_stream():
    variants = [
        Streams(1, 0).uniforms("a", 0, 2000, 4),
        Streams(2, 0).uniforms("a", 0, 2000, 4),
        Streams(1, 1).uniforms("a", 0, 2000, 4),
        Streams(1, 0).uniforms("b", 0, 2000, 4),
        Streams(1, 0).uniforms("a", 0, 2000, 3),
        Streams(11, 0).uniforms("a", 0, 2000, 4),
        Streams(1, 10).uniforms("a", 0, 2000, 4),
    ]
    columns = np.array([numbers[:, 0] for numbers in variants])
    assert len(np.unique(columns)) == columns.size
    off_diagonal = np.corrcoef(columns)[~np.eye(len(columns), dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.1  # 4.5 standard deviations


def test_uniform_and_independent():
    numbers = Streams(12345).uniforms("uniformity", 0, 50_000, 4)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for position in range(4):
        assert stats.kstest(numbers[:, position], "uniform").pvalue > 1e-3
    neighbours = np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]
    within = np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]
    assert abs(neighbours) < 0.01
    assert abs(within) < 0.02


def test_strictly_inside_the_unit_interval(monkeypatch):
    class Extreme:
        def __init__(self, **_: int) -> None:
            self.state = {"state": {"counter": np.zeros(4, dtype=np.uint64)}}

        def random_raw(self, count: int) -> np.ndarray:
            return np.array([0, 2**64 - 1] * (count // 2), dtype=np.uint64)

    monkeypatch.setattr(rng, "Philox", Extreme)
    numbers = Streams(0).uniforms("a", 0, 1, 4)
    assert numbers.min() == 2.0**-53
    assert numbers.max() == 1 - 2.0**-53


def test_frozen():
    """Stored results stay reproducible: these numbers may change only with a changelog entry."""
    numbers = Streams(20260101, 2).uniforms("workload.output.sample.0", 17, 100, 8)
    assert hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()[:16] == "5bb1ff25e8385a28"


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_in_every_process(hash_seed):
    code = "from ttsim_des.rng import Streams; print(Streams(5).uniforms('a', 3, 2, 2).tolist())"
    env = {"PYTHONHASHSEED": hash_seed}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(Streams(5).uniforms("a", 3, 2, 2).tolist())
