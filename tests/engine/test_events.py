"""What a simulation costs, in SimPy events: it grows with changes of the batch, never with tokens."""

from __future__ import annotations

import pytest
from engine_rig import MS, World

from ttsim_des.latency.host import HostOverhead

HOSTS = {"free host": HostOverhead(), "host": HostOverhead(10_000, 100, 10_000, 100)}


def events(build, *, host: HostOverhead, **settings) -> int:
    world = World("leap", host=host, **settings)
    build(world)
    world.run()
    return world.timeline.events


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
class TestEvents:
    def test_a_thousand_tokens_cost_what_a_hundred_thousand_do(
        self, host: HostOverhead, async_scheduling: bool
    ) -> None:
        costs = {
            tokens: events(
                lambda world, tokens=tokens: world.ask("a", 100, tokens),
                host=host,
                async_scheduling=async_scheduling,
                usable_blocks=100_000,
            )
            for tokens in (100, 1_000, 100_000)
        }
        assert len(set(costs.values())) == 1, costs
        assert costs[1_000] <= 8

    def test_an_arrival_into_a_long_decode_costs_a_constant(self, host: HostOverhead, async_scheduling: bool) -> None:
        def build(arrivals: int) -> None:
            def ask(world: World) -> None:
                world.ask("a", 4, 10_000)
                for k in range(arrivals):
                    world.ask(f"b{k}", 4, 20, at_ns=(50 + 100 * k) * MS + 1)

            return ask

        costs = [
            events(build(arrivals), host=host, async_scheduling=async_scheduling, usable_blocks=100_000)
            for arrivals in (10, 20, 40)
        ]
        per_arrival = (costs[2] - costs[1]) / 20
        assert (costs[1] - costs[0]) / 10 == pytest.approx(per_arrival, abs=0.3)
        assert per_arrival <= 7  # its arrival, its prefill, its end: three changes of the batch, and those of a

    def test_sequences_that_decode_together_cost_an_event_per_end(
        self, host: HostOverhead, async_scheduling: bool
    ) -> None:
        def build(world: World) -> None:
            for k in range(64):
                world.ask(f"r{k}", 4, 500 + 37 * k)

        cost = events(build, host=host, async_scheduling=async_scheduling, usable_blocks=100_000)
        assert cost <= 64 * (1 + 2) + 8  # an arrival each, and at most two events around each end

    def test_long_prompts_cost_an_event_a_chunk(self, host: HostOverhead, async_scheduling: bool) -> None:
        cost = events(
            lambda world: world.ask("a", 64 * 100, 2),
            host=host,
            async_scheduling=async_scheduling,
            max_num_batched_tokens=64,
            usable_blocks=10_000,
        )
        assert cost <= 100 + 8

    def test_running_out_of_blocks_costs_a_constant_per_preemption(
        self, host: HostOverhead, async_scheduling: bool
    ) -> None:
        world = World("leap", host=host, async_scheduling=async_scheduling, usable_blocks=400)
        for k in range(16):
            world.ask(f"r{k}", 4, 1_000)
        world.run()
        preemptions = sum(request.preemptions for request in world.requests.values())
        assert preemptions >= 8
        assert world.timeline.events <= 16 * 3 + preemptions * 4

    def test_stepping_costs_an_event_a_step(self, host: HostOverhead, async_scheduling: bool) -> None:
        world = World("step", host=host, async_scheduling=async_scheduling)
        world.ask("a", 4, 1_000)
        world.run()
        assert 1_000 <= world.timeline.events <= 1_000 + 8
