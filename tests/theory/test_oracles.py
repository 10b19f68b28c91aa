"""The oracles against independent computations, so that they can be trusted to judge the simulator."""

import itertools
import math

import numpy as np
import oracles
import pytest


def birth_death_wait(rate, service, servers, states=3000):
    """Waiting time in M/M/c from its balance equations and Little's law."""
    weights = np.ones(states)
    for k in range(1, states):
        weights[k] = weights[k - 1] * rate * service / min(k, servers)
    weights /= weights.sum()
    return float(weights @ np.maximum(np.arange(states) - servers, 0)) / rate


@pytest.mark.parametrize(("load", "servers"), [(0.5, 1), (0.9, 1), (0.7, 4), (0.95, 16)])
def test_mmc(load, servers):
    rate = load * servers / 2.0
    assert oracles.mmc_wait(rate, 2.0, servers) == pytest.approx(birth_death_wait(rate, 2.0, servers), rel=1e-9)


def test_mg1_contains_mm1():
    assert oracles.mg1_wait(0.6, 1.0, 2.0) == pytest.approx(oracles.mmc_wait(0.6, 1.0, 1))
    assert oracles.mg1_wait(0.5, 1.0, 1.0) == pytest.approx(0.5)  # M/D/1 at load 1/2: half a service


def test_ps_is_a_birth_death_chain_for_exponential_sizes():
    load = 0.6
    number = sum(k * (1 - load) * load**k for k in range(500))
    assert oracles.ps_slowdown(load) == pytest.approx(number / load)  # Little, mean size 1


def test_single_server():
    assert oracles.single_server_finishes([0, 1, 10], [3, 4, 5]) == [3, 7, 15]


@pytest.mark.parametrize("largest", [True, False])
def test_extremes_by_enumeration(largest):
    values = [3, 9, 4, 4, 20]
    pick = max if largest else min
    independent = [pick(draw) for draw in itertools.product(values, repeat=3)]
    assert oracles.expected_extreme(values, 3, largest=largest) == pytest.approx(np.mean(independent))
    distinct = [pick(draw) for draw in itertools.combinations(values, 3)]
    assert oracles.expected_extreme_of_distinct(values, 3, largest=largest) == pytest.approx(np.mean(distinct))
    everything = oracles.expected_extreme_of_distinct(values, 5, largest=largest)
    assert everything == pick(values)


def test_geometric_quantiles():
    lengths = np.array(oracles.geometric_quantiles(50, 20_000))
    assert lengths.min() == 1
    assert lengths.mean() == pytest.approx(50, rel=1e-3)
    assert lengths.var() == pytest.approx(50 * 49, rel=5e-3)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = sum(low <= 1 <= high for low, high in (oracles.interval(rng.exponential(size=12), 0.9) for _ in range(4000)))
    assert 0.84 < hits / 4000 < 0.92  # skewed data: a little under
    low, high = oracles.interval([1.0, 2.0, 3.0], 0.95)
    assert (high - low) / 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_disagreement_is_noticed():
    values = [1.0, 1.01, 0.99, 1.005, 0.995]
    oracles.assert_agrees(values, 1.0)
    oracles.assert_agrees(values, 0.9, slack=0.2)
    for theory in (0.9, 1.1):
        with pytest.raises(AssertionError):
            oracles.assert_agrees(values, theory)
    with pytest.raises(AssertionError, match="too wide"):
        oracles.assert_agrees([0.5, 1.5, 1.0], 1.0)


def test_poisson():
    assert oracles.poisson_pmf(2.0, 3) == pytest.approx(math.exp(-2) * 8 / 6)
