"""The shape of an engine step: all that a latency model may know about it.

No request, no clock: a step model is a pure function of these numbers, each of which the engine can maintain in
O(1) (maximum: O(log batch)) per change of the batch.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class PrefillChunk(NamedTuple):
    """`new` tokens of one sequence computed in this step on top of `computed` tokens already in the KV cache."""

    new: int
    computed: int


class StepShape(NamedTuple):
    """One engine step.

    A decode sequence computes one token; its context counts that token (computed before + 1). Everything else is
    a prefill chunk, re-prefill after a preemption included. `logits_rows` are the rows that lm_head and the
    sampler see: decodes, their drafts, and prompts that end in this step. With speculation a decode sequence computes
    its drafts too and its context counts them: `draft_tokens` are verified in all; afterwards `proposed` new ones are
    drafted per sequence.
    """

    decode_seqs: int
    decode_ctx_sum: int
    decode_ctx_max: int
    prefill_chunks: tuple[PrefillChunk, ...]
    logits_rows: int
    draft_tokens: int = 0
    proposed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model's dense layers in this step."""
        return self.decode_seqs + self.draft_tokens + sum(chunk.new for chunk in self.prefill_chunks)


class Run(NamedTuple):
    """`steps` consecutive steps of one batch: step j (from 0) takes `first_ns + j * increment_ns`.

    `in_domain`: what the model says of the domain, the same for all of them.
    """

    steps: int
    first_ns: int
    increment_ns: int
    in_domain: bool = True


class StepModel(Protocol):
    """Time of engine steps on the device, in integer nanoseconds."""

    def step_ns(self, shape: StepShape) -> int:
        """Device time of one step of this shape; at least 1."""
        ...

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """The longest linear run (at most `max_steps`) of decode steps that starts with `shape`.

        `shape` has no prefill chunks. From step to step every context grows by one token, so the sum grows by
        `decode_seqs` and the maximum by 1. Exact: the j-th step of the run takes what `step_ns` says of it, and is in
        the domain as `in_domain` says.
        """
        ...

    def in_domain(self, shape: StepShape) -> bool:
        """Whether every table look-up for this shape lies inside the measured domain."""
        ...
