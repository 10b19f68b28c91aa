"""The affine step model: a constant and four coefficients, in exact integer arithmetic."""

from __future__ import annotations

from decimal import Decimal

from ttsim_des.latency.shape import Run, StepShape

_PS_PER_NS = 1000


class AffineStepModel:
    """Step time = constant + per token + per decode sequence + per decode-context token + per query-key pair.

    A prefill chunk of n tokens over c computed ones has n c + n (n + 1) / 2 query-key pairs. Coefficients are kept
    in whole picoseconds. Coefficients of whole nanoseconds give the sum exactly.

    A draft costs what a token does, and its own coefficient.

    The context term must be linear in the step index (see `decode_run`). For B decode sequences a unit of mean
    context costs B times the coefficient; where that is not a whole number of nanoseconds, it alternates between
    the two whole numbers around it within every 1000 units of mean context, in such shares that each 1000 units
    cost exactly what they should. The deviation inside stays below 250 ns.
    """

    def __init__(
        self,
        constant_ns: float = 0,
        per_token_ns: float = 0,
        per_decode_seq_ns: float = 0,
        per_decode_ctx_token_ns: float = 0,
        per_prefill_qk_pair_ns: float = 0,
        per_draft_ns: float = 0,
    ) -> None:
        """Coefficients in nanoseconds, rounded to a picosecond."""
        self._constant_ps = _picoseconds(constant_ns)
        self._token_ps = _picoseconds(per_token_ns)
        self._seq_ps = _picoseconds(per_decode_seq_ns)
        self._ctx_ps = _picoseconds(per_decode_ctx_token_ns)
        self._pair_ps = _picoseconds(per_prefill_qk_pair_ns)
        self._draft_ps = _picoseconds(per_draft_ns)

    def step_ns(self, shape: StepShape) -> int:
        """Device time of one step; at least 1."""
        context_ns = self._context(shape.decode_seqs, shape.decode_ctx_sum)[0] if shape.decode_seqs else 0
        return max(1, self._flat_ns(shape) + context_ns)

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """The longest linear run of decode steps from `shape`, at most `max_steps`; see `StepModel.decode_run`."""
        context_ns, slope_ns, steps = self._context(shape.decode_seqs, shape.decode_ctx_sum)
        first_ns = self._flat_ns(shape) + context_ns
        if first_ns < 1:
            # All coefficients (nearly) zero: the floor of 1 ns binds, which is linear only as long as it does.
            return Run(max_steps if slope_ns == 0 and steps is None else 1, 1, 0)
        return Run(max_steps if steps is None else min(steps, max_steps), first_ns, slope_ns)

    def in_domain(self, shape: StepShape) -> bool:
        """Always: there are no tables."""
        return True

    def _flat_ns(self, shape: StepShape) -> int:
        """Everything but the decode context."""
        flat_ps = self._constant_ps + self._token_ps * shape.tokens + self._seq_ps * shape.decode_seqs
        flat_ps += self._draft_ps * shape.draft_tokens
        if shape.prefill_chunks and self._pair_ps:
            pairs = sum(new * computed + new * (new + 1) // 2 for new, computed in shape.prefill_chunks)
            flat_ps += self._pair_ps * pairs
        return flat_ps // _PS_PER_NS

    def _context(self, seqs: int, ctx_sum: int) -> tuple[int, int, int | None]:
        """Nanoseconds for the contexts, their growth per step, and for how many steps that holds (None: for ever)."""
        per_period_ns = self._ctx_ps * seqs  # of 1000 units of mean context: picoseconds times 1000 are nanoseconds
        slope_ns, dearer_units = divmod(per_period_ns, _PS_PER_NS)
        if not dearer_units:
            return slope_ns * ctx_sum // seqs, slope_ns, None
        period, within = divmod(ctx_sum, _PS_PER_NS * seqs)
        turn = (_PS_PER_NS - dearer_units) * seqs
        base_ns = period * per_period_ns
        if within < turn:
            return base_ns + slope_ns * within // seqs, slope_ns, -((within - turn) // seqs)
        base_ns += slope_ns * (_PS_PER_NS - dearer_units)
        past = within - turn
        end = dearer_units * seqs
        return base_ns + (slope_ns + 1) * past // seqs, slope_ns + 1, -((past - end) // seqs)


def _picoseconds(nanoseconds: float) -> int:
    """Nearest whole number of picoseconds, exact for any decimal that a user writes."""
    return round(Decimal(str(nanoseconds)) * _PS_PER_NS)
