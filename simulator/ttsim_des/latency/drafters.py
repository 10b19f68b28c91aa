"""What drafting costs on the device, composed from the same kernels as the model that verifies.

After a step the drafter proposes `StepShape.proposed` tokens for each sequence. Drafters that run a network do so in
passes: the first over every token of the step, those behind it over the newest token of each sequence (in a tree: over
the nodes of the level before). Before each pass the device waits `gap_ns` for the host. Rules: docs/speculation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ttsim_des.latency.gemm import gemm_curve
from ttsim_des.latency.geometry import ModelGeometry
from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.many_steps import ComingSteps, IntArray, Times
from ttsim_des.latency.profile import GpuProfile
from ttsim_des.latency.shape import Run, StepShape
from ttsim_des.units import NS_PER_US


class Drafter(Protocol):
    """Device time of drafting, in integer nanoseconds."""

    def draft_ns(self, shape: StepShape) -> int:
        """Drafting after a step of this shape."""
        ...

    def drafts_ns(self, shape: StepShape, steps: ComingSteps) -> IntArray:
        """Drafting after many steps of one decode batch, `shape` being the first."""
        ...


@dataclass(frozen=True)
class Passes:
    """A network that runs once per level of drafts: a draft model, EAGLE's or MTP's layer.

    `network` times a pass, `fusion` what it computes per token beside (microseconds against tokens): the products that
    join hidden state and embedding. `slots`: tokens that the first pass adds for each sequence. `tree`: nodes verified
    at each depth; empty: a chain.
    """

    network: KernelStepModel
    fusion: Sequence[Curve]
    gap_ns: int
    slots: int = 0
    tree: tuple[int, ...] = ()
    _known_fusions_ns: dict[int, int] = field(default_factory=dict)
    _known_later: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def draft_ns(self, shape: StepShape) -> int:
        """See `Drafter`."""
        if not shape.proposed:
            return 0
        chunks = shape.prefill_chunks
        seqs = shape.decode_seqs + len(chunks)
        first = shape._replace(logits_rows=seqs, draft_tokens=shape.draft_tokens + self.slots * shape.decode_seqs)
        total_ns = self.network.step_ns(first) + self._fusion_ns(first.tokens)
        ctx_sum, ctx_max = shape.decode_ctx_sum, shape.decode_ctx_max
        for new, computed in chunks:
            ctx_sum += new + computed
            ctx_max = max(ctx_max, new + computed)
        levels = self._levels(shape.proposed)
        for nodes in levels[1:]:
            later = StepShape(seqs, ctx_sum, ctx_max, (), seqs * nodes, seqs * (nodes - 1))
            total_ns += self.network.step_ns(later) + self._fusion_ns(seqs * nodes)
        return total_ns + len(levels) * self.gap_ns

    def drafts_ns(self, shape: StepShape, steps: ComingSteps) -> IntArray:
        """See `Drafter`."""
        if not shape.proposed:
            return np.zeros(steps.ctx_sums.size, dtype=np.int64)
        network, seqs = self.network, shape.decode_seqs
        flat_ns, later_tiles = self._later(seqs, shape.proposed)
        if steps.drafts >= 0:
            tiles, first_ns = self._first_ns(seqs, steps.drafts + self.slots * seqs)
            return network.attention_ns(seqs, steps, tiles + later_tiles, flat_ns + first_ns)
        numbers = steps.draft_tokens.tolist()
        first = {number: self._first_ns(seqs, number + self.slots * seqs) for number in set(numbers)}
        times_ns = network.attention_ns(seqs, steps, 1, 0)
        times_ns *= np.array([first[number][0] + later_tiles for number in numbers], dtype=np.int64)
        times_ns += np.array([first[number][1] + flat_ns for number in numbers], dtype=np.int64)
        return times_ns

    def _later(self, seqs: int, proposed: int) -> tuple[int, int]:
        """The passes behind the first and all gaps: time beside attention, and how often the keys are read."""
        known = self._known_later.get((seqs, proposed))
        if known is None:
            network, levels = self.network, self._levels(proposed)
            flat_ns, tiles = len(levels) * self.gap_ns, 0
            for nodes in levels[1:]:
                flat_ns += network.dense_ns(seqs * nodes, seqs * nodes) + self._fusion_ns(seqs * nodes)
                tiles += network.tiles(seqs, seqs * (nodes - 1))
            known = self._known_later[seqs, proposed] = (flat_ns, tiles)
        return known

    def _first_ns(self, seqs: int, drafts: int) -> tuple[int, int]:
        """How often the first pass reads the keys and values, and its time beside that."""
        tokens = seqs + drafts
        return self.network.tiles(seqs, drafts), self.network.dense_ns(tokens, seqs) + self._fusion_ns(tokens)

    def _levels(self, proposed: int) -> tuple[int, ...]:
        """Nodes that each pass computes per sequence: the newest token, then those of the level before."""
        return (1, *self.tree[:-1]) if self.tree else (1,) * proposed

    def _fusion_ns(self, tokens: int) -> int:
        fusion_ns = self._known_fusions_ns.get(tokens)
        if fusion_ns is None:
            fusion_ns = round(sum(curve.at(tokens) for curve in self.fusion) * NS_PER_US)
            self._known_fusions_ns[tokens] = fusion_ns
        return fusion_ns


@dataclass(frozen=True)
class Heads:
    """Medusa: every draft has a head of its own behind the model; all run at once on the newest token."""

    head: KernelStepModel
    block: Curve
    gap_ns: int

    def draft_ns(self, shape: StepShape) -> int:
        """See `Drafter`."""
        seqs = shape.decode_seqs + len(shape.prefill_chunks)
        if not shape.proposed:
            return 0
        each_ns = self.head.dense_ns(seqs, seqs) - self.head.dense_ns(seqs, 0) + round(self.block.at(seqs) * NS_PER_US)
        return shape.proposed * each_ns + self.gap_ns

    def drafts_ns(self, shape: StepShape, steps: ComingSteps) -> IntArray:
        """See `Drafter`."""
        return np.full(steps.ctx_sums.size, self.draft_ns(shape), dtype=np.int64)


class SpeculativeStepModel:
    """A step that verifies drafts, then makes new ones: the model's kernels and the drafter's. A `StepModel`."""

    def __init__(self, verifier: KernelStepModel, drafter: Drafter) -> None:
        self.verifier, self.drafter = verifier, drafter

    def step_ns(self, shape: StepShape) -> int:
        """Device time of one step; see `StepModel.step_ns`."""
        return self.verifier.step_ns(shape) + self.drafter.draft_ns(shape)

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """One step: those behind it have other drafts, and contexts that nobody knows from the shape."""
        return Run(1, self.step_ns(shape), 0, self.in_domain(shape))

    def draft_steps(self, shape: StepShape, steps: ComingSteps) -> Times:
        """Many steps; see `ManyStepsModel`."""
        times_ns, in_domain = self.verifier.draft_steps(shape, steps)
        times_ns += self.drafter.drafts_ns(shape, steps)
        return times_ns, in_domain

    def in_domain(self, shape: StepShape) -> bool:
        """Whether the model's step was measured; drafting is not looked at."""
        return self.verifier.in_domain(shape)


def head_geometry(target: ModelGeometry, draft_vocab: int | None) -> ModelGeometry:
    """One layer of the target with a vocabulary of its own or the target's: EAGLE's and MTP's network.

    It is dense and sees everything, also where the target has experts and windows.
    """
    vocab = target.vocab if draft_vocab is None else draft_vocab
    plain = replace(target, experts=0, experts_per_token=0, expert_intermediate=0, expert_dtype="")
    plain = replace(plain, window=0, window_layers=0)
    return replace(plain, name=f"{target.name} (draft head)", layers=1, vocab=vocab, tied=False)


def fusion_curves(profile: GpuProfile, dtype: str, target: ModelGeometry, method: str, tp: int) -> tuple[Curve, ...]:
    """Products that a draft head computes beside its layer, microseconds against tokens.

    EAGLE and MTP join hidden state and embedding (2h to h); EAGLE-3 three hidden states (3h to h), and its queries,
    keys and values are computed from two vectors instead of one.
    """
    hidden = target.hidden
    if method in ("eagle", "mtp"):
        return (gemm_curve(profile, dtype, hidden, 2 * hidden),)
    heads = target.heads_per_gpu(tp) + 2 * target.kv_heads_per_gpu(tp)
    return (
        gemm_curve(profile, dtype, hidden, 3 * hidden),
        gemm_curve(profile, dtype, heads * target.head_dim, hidden),
    )
