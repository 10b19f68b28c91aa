"""The step model fitted to measured steps: a line in the context for every batch that decodes, an affine rest."""

from __future__ import annotations

from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.interpolate import Curve
from ttsim_des.latency.shape import Run, StepShape


class BatchTableStepModel:
    """A step of B decodes takes base(B) + slope(B) x mean context; one with a prompt what the affine model says.

    `base_ns` and `slope_ns` (per token of mean context) are curves over the batch, linear between measured batches.
    """

    def __init__(self, base_ns: Curve, slope_ns: Curve, with_prompts: AffineStepModel) -> None:
        self._base_ns, self._slope_ns, self._with_prompts = base_ns, slope_ns, with_prompts
        self._rows: dict[int, tuple[int, int]] = {}

    def step_ns(self, shape: StepShape) -> int:
        """Device time of one step; see `StepModel.step_ns`."""
        if shape.prefill_chunks:
            return self._with_prompts.step_ns(shape)
        return self.decode_run(shape, 1).first_ns

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """The longest linear run of decode steps; see `StepModel.decode_run`."""
        seqs = shape.decode_seqs
        row = self._rows.get(seqs)
        if row is None:
            row = self._rows[seqs] = (max(1, round(self._base_ns.at(seqs))), max(0, round(self._slope_ns.at(seqs))))
        base_ns, slope_ns = row
        return Run(max_steps, base_ns + slope_ns * shape.decode_ctx_sum // seqs, slope_ns, self.in_domain(shape))

    def in_domain(self, shape: StepShape) -> bool:
        """Whether a batch as large was measured."""
        return shape.decode_seqs <= self._base_ns.x[-1]
