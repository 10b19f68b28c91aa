"""The simulator against queueing theory, in means over independent replications; exact where theory is exact."""

import numpy as np
import oracles
import pytest
from world import STEP_NS, column, lengths_file, run_world, scenario

REPLICATIONS = 10


def poisson(load, mean_service_s):
    return {"process": "poisson", "rate_per_s": load / mean_service_s}


def waits_s(tables, warmup):
    requests = tables.requests
    return (column(requests, "scheduled_ns") - column(requests, "arrival_ns"))[warmup:] / 1e9


def sojourns_s(tables):
    return (column(tables.queries, "finish_ns") - column(tables.queries, "arrival_ns")) / 1e9


@pytest.mark.parametrize(("servers", "load"), [(2, 0.6), (5, 0.7)])
def test_mmc_waiting_time(tmp_path, servers, load):
    """Flat step, `servers` seats, geometric lengths: M/M/c. Steps add up to one step to a wait."""
    lengths = oracles.geometric_quantiles(500, 4000)
    service_s = float(np.mean(lengths)) * STEP_NS / 1e9
    world = scenario(poisson(load * servers, service_s), lengths_file(tmp_path, lengths), 1500)
    means = [
        waits_s(run_world(world, tmp_path, replication=r, max_num_seqs=servers), 150).mean()
        for r in range(REPLICATIONS)
    ]
    theory = oracles.mmc_wait(load * servers / service_s, service_s, servers)
    oracles.assert_agrees(means, theory, slack=STEP_NS / 1e9, precision=0.35)


def test_md1_waiting_time(tmp_path):
    """One seat, constant lengths: M/D/1."""
    load, mean = 0.6, 1000
    output = {"distribution": "constant", "tokens": mean}
    service_s = mean * STEP_NS / 1e9
    world = scenario(poisson(load, service_s), output, 1500)
    means = [
        waits_s(run_world(world, tmp_path, replication=r, max_num_seqs=1), 150).mean() for r in range(REPLICATIONS)
    ]
    theory = oracles.mg1_wait(load / service_s, service_s, service_s**2)
    oracles.assert_agrees(means, theory, slack=STEP_NS / 1e9, precision=0.25)


def test_processor_sharing(tmp_path):
    """Step time proportional to the batch: M/G/1-PS. Mean sojourn / size is 1 / (1 - load) for short and for long."""
    load, mean, token_ns = 0.6, 3000, 500_000
    output = {"distribution": "lognormal", "mean": float(mean), "query_sigma": 0.9, "min": 100}
    world = scenario(poisson(load, mean * token_ns / 1e9), output, 1200)
    slowdowns: dict[str, list[float]] = {"short": [], "long": []}
    for replication in range(REPLICATIONS):
        tables = run_world(world, tmp_path, replication=replication, per_token_ns=token_ns)
        size_s = column(tables.queries, "output_tokens") * token_ns / 1e9
        slowdown, late = sojourns_s(tables) / size_s, np.arange(len(size_s)) >= 120
        is_short = size_s <= np.median(size_s)
        slowdowns["short"].append(slowdown[late & is_short].mean())
        slowdowns["long"].append(slowdown[late & ~is_short].mean())
    for name, means in slowdowns.items():
        # Waiting for the step in progress: a few tokens' time, of at least a hundred.
        oracles.assert_agrees(means, oracles.ps_slowdown(load), slack=0.02 * (name == "short"), precision=0.15)


def test_infinite_servers(tmp_path):
    """Flat step, no cap: the number in the system is Poisson, and a query takes its own length."""
    mean_number, mean = 3.0, 1000
    output = {"distribution": "lognormal", "mean": float(mean), "query_sigma": 0.7}
    service_s = mean * STEP_NS / 1e9
    world = scenario(poisson(mean_number, service_s), output, 1200)
    shares: list[list[float]] = []
    for replication in range(REPLICATIONS):
        tables = run_world(world, tmp_path, replication=replication)
        arrivals, finishes = (np.sort(column(tables.queries, name)) for name in ("arrival_ns", "finish_ns"))
        times = np.linspace(arrivals[120], arrivals[-1], 4000)
        number = np.searchsorted(arrivals, times, "right") - np.searchsorted(finishes, times, "right")
        shares.append([float(np.mean(number == count)) for count in (1, 3, 5)])
        stretch_s = sojourns_s(tables) - column(tables.queries, "output_tokens") * STEP_NS / 1e9
        assert stretch_s.min() >= 0
        assert stretch_s.max() < STEP_NS / 1e9  # flat: nobody is slowed down by others
    for position, count in enumerate((1, 3, 5)):
        oracles.assert_agrees([s[position] for s in shares], oracles.poisson_pmf(mean_number, count), precision=0.2)


@pytest.mark.parametrize("first", [None, 1])
@pytest.mark.parametrize("distinct", [False, True])
def test_best_of_n(tmp_path, first, distinct):
    """Flat step, light load: a query takes as long as its longest sample, or its shortest when the first one wins."""
    samples, rng = 8, np.random.default_rng(8)
    lengths = np.rint(rng.lognormal(6, 0.6, size=(40, 12))).astype(int) + 50
    problems = np.repeat(np.arange(40), 12).tolist()
    output = lengths_file(tmp_path, lengths.ravel().tolist(), problems if distinct else None)
    strategy = {"name": "best_of_n", "samples": samples} | ({"first": first} if first else {})
    world = scenario(poisson(0.5, 1.0), output, 150, strategy=strategy)
    means = [sojourns_s(run_world(world, tmp_path, replication=r)).mean() for r in range(REPLICATIONS)]
    if distinct:
        extremes = [oracles.expected_extreme_of_distinct(p.tolist(), samples, largest=first is None) for p in lengths]
        theory = float(np.mean(extremes))
    else:
        theory = oracles.expected_extreme(lengths.ravel().tolist(), samples, largest=first is None)
    oracles.assert_agrees(means, theory * STEP_NS / 1e9, slack=STEP_NS / 1e9, precision=0.06)


def test_one_seat_to_the_nanosecond(tmp_path):
    """A single server is Lindley's recursion, in integers, whatever the arrivals and lengths."""
    output = {"distribution": "lognormal", "mean": 80.0, "query_sigma": 0.9}
    world = scenario({"process": "gamma", "rate_per_s": 4.0, "burstiness": 0.5}, output, 500, prompt_tokens=17)
    tables = run_world(world, tmp_path, max_num_seqs=1, constant_ns=1_999_999, per_token_ns=1001)
    arrivals, lengths = column(tables.queries, "arrival_ns").tolist(), column(tables.queries, "output_tokens").tolist()
    services = [1_999_999 + 17 * 1001 + (length - 1) * (1_999_999 + 1001) for length in lengths]
    assert column(tables.queries, "finish_ns").tolist() == oracles.single_server_finishes(arrivals, services)


def test_shared_steps_by_hand(tmp_path):
    """Arrivals at 0, 2.5 and 5 ms; prompts of 10, outputs of 4; a step takes 1 ms + 0.01 ms a token.

    A's prefill ends at 1.1, its decodes at 2.11 and 3.12. B came at 2.5 and joins: 11 tokens, to 4.23, A's last. B
    alone to 5.24. C came at 5 and joins: 11 tokens, to 6.35. Both to 7.37, B's last. C alone to 8.38 and 9.39.
    """
    world = scenario(
        {"process": "constant", "rate_per_s": 400.0}, {"distribution": "constant", "tokens": 4}, 3, prompt_tokens=10
    )
    tables = run_world(world, tmp_path, constant_ns=1_000_000, per_token_ns=10_000)
    assert column(tables.queries, "first_token_ns").tolist() == [1_100_000, 4_230_000, 6_350_000]
    assert column(tables.queries, "finish_ns").tolist() == [4_230_000, 7_370_000, 9_390_000]
