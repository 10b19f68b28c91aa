import numpy as np
import pytest
from scipy import stats

from ttsim_des.router import home_replica, make_router


def test_round_robin_takes_turns():
    router = make_router("round_robin", 3)
    assert [router.choose(5, [9, 0, 0]) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert make_router("round_robin", 3).choose(5, [0, 0, 0]) == 0  # routers share no state


def test_least_loaded_takes_the_first_of_the_fewest():
    router = make_router("least_loaded", 4)
    assert router.choose(0, [3, 1, 2, 1]) == 1
    assert router.choose(0, [0, 0, 0, 0]) == 0
    assert router.choose(0, [2, 2, 2, 1]) == 3


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded", "query_affinity"])
def test_one_replica(policy):
    router = make_router(policy, 1)
    assert [router.choose(q, [q]) for q in range(5)] == [0] * 5


def test_homes_are_fixed_and_even():
    assert [home_replica(q, 8) for q in range(8)] == [7, 4, 4, 0, 3, 3, 5, 3]  # frozen: stored results depend on it
    homes = np.bincount([home_replica(q, 7) for q in range(7000)], minlength=7)
    assert stats.chisquare(homes).pvalue > 1e-3
    assert len(homes) == 7


def test_affinity_keeps_a_query_at_home_until_it_is_overfull():
    router = make_router("query_affinity", 4)
    query = next(q for q in range(100) if home_replica(q, 4) == 2)
    at_home = {
        loads: router.choose(query, loads) == 2
        for loads in [(0, 0, 0, 0), (0, 0, 1, 0), (9, 9, 10, 9), (8, 8, 10, 14), (0, 3, 2, 0), (16, 16, 23, 16)]
    }
    assert all(at_home.values()), at_home
    away = {(1, 0, 2, 0): 1, (7, 9, 14, 9): 0, (5, 5, 9, 1): 3, (16, 16, 24, 16): 0}
    assert {loads: router.choose(query, loads) for loads in away} == away
