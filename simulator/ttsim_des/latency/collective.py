"""Latency of the collectives of a tensor-parallel group."""

from __future__ import annotations

from ttsim_des.errors import bad_input
from ttsim_des.latency.interpolate import Curve, last_slope
from ttsim_des.latency.profile import GpuProfile


class AllReduce:
    """All-reduce among `ranks` GPUs: linear between measured sizes, and past the largest.

    The table for CUDA graphs holds for steps that run in one (`graph_tokens` and fewer), the eager one for
    larger steps. One GPU alone needs none.
    """

    def __init__(self, profile: GpuProfile, ranks: int, graph_tokens: int) -> None:
        """InputError (key `cluster.tp`) when this number of GPUs was not measured."""
        self._graph_tokens = graph_tokens
        self.max_bytes = float("inf")
        self._curves: dict[str, Curve] = {}
        if ranks == 1:
            return
        measured = profile.values("all_reduce", "graph", "ranks")
        if ranks not in measured:
            raise bad_input(
                f"GPU profile {profile.meta.name} has no all-reduce among {ranks} GPUs",
                key="cluster.tp",
                expected=f"1 or one of {', '.join(map(str, measured))}",
            )
        for mode in ("graph", "eager"):
            if ranks not in profile.values("all_reduce", mode, "ranks"):
                raise bad_input(f"GPU profile {profile.meta.name} has no {mode} all-reduce", key="cluster.gpu")
            rows = profile.select("all_reduce", mode, ranks=ranks)
            order = rows["bytes"].argsort()
            sizes = tuple(rows["bytes"][order].tolist())
            latency_us = tuple(rows["latency_us"][order].tolist())
            self._curves[mode] = Curve(sizes, latency_us, last_slope(sizes, latency_us))
        self.max_bytes = min(curve.x[-1] for curve in self._curves.values())

    def us(self, tokens: int, size_bytes: int) -> float:
        """Microseconds to sum `size_bytes` over the group in a step of `tokens` tokens."""
        if not self._curves:
            return 0.0
        return self._curves["graph" if tokens <= self._graph_tokens else "eager"].at(size_bytes)

    def gather_us(self, tokens: int, size_bytes: int) -> float:
        """Microseconds to bring `size_bytes` together: an all-gather moves half of what an all-reduce moves."""
        return self.us(tokens, size_bytes) / 2
