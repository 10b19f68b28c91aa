"""Partial chains of thought: a chain is generated step by step, judged in between, and forked.

A chain that is not forked is one of the query's draws, cut into steps of about `step_tokens`. A fork takes another
draw for what is still to come: with f of the chain behind it, it is 1 - f of that draw long, and it keeps its parent's
outcome with probability f, else it has the draw's own. A step's score is a bridge to the score at the end,
f s + sqrt(f (1 - f)) n with n standard normal, so it tells more the deeper the chain is.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from ttsim_des.workload.handle import Query, Sample
from ttsim_des.workload.queries import Verdict

_QUANTILE = NormalDist().inv_cdf


class Path:
    """One partial chain; `last` is the request that generated its last step."""

    def __init__(
        self,
        query: Query,
        tokens: int,
        verdict: Verdict | None,
        *,
        done: int = 0,
        left: int | None = None,
        last: Sample | None = None,
        used: int = 0,
    ) -> None:
        """A chain of `tokens` in all; `done` steps (`used` tokens) of it are there, `left` steps are to come."""
        self.query, self.verdict, self.last = query, verdict, last
        self._left_tokens = tokens
        self._done = done
        self._left = _steps(query, tokens) if left is None else left
        self._used = used

    @classmethod
    def root(cls, query: Query) -> Path:
        """A new chain from the query's prompt."""
        return cls(query, *query.draw())

    @property
    def progress(self) -> float:
        """The share of its steps that is there."""
        return self._done / (self._done + self._left)

    @property
    def is_finished(self) -> bool:
        """Whether its last step is there, or its cap was reached."""
        return self._left == 0 or (self.last is not None and self.last.request.finish_reason == "length")

    def fork(self) -> Path:
        """Another continuation of what is there."""
        tokens, verdict = self.query.draw()
        share = 1 - self.progress
        left_tokens = max(1, round(share * tokens))
        if self.query.uniform("fork", self.query.num_lanes) >= share:
            verdict = self.verdict
        return Path(
            self.query,
            left_tokens,
            verdict,
            done=self._done,
            left=_steps(self.query, left_tokens),
            last=self.last,
            used=self._used,
        )

    def step(self, *, to_end: bool = False) -> Sample:
        """Ask for the next step, or for all that are left."""
        steps = self._left if to_end else 1
        tokens = self._left_tokens if steps == self._left else -(-self._left_tokens // self._left)
        self._left -= steps
        self._done += steps
        room = max(1, self.query.max_tokens - self._used)
        self.last = self.query.spawn(
            parent=self.last, tokens=tokens, max_tokens=room, verdict=None if self._left else self.verdict
        )
        self._left_tokens -= tokens
        self._used += tokens
        return self.last

    def score(self) -> float:
        """What a process reward model says of it now."""
        assert self.last is not None
        end = _QUANTILE(self.query.uniform("end", self.last.index)) if self.verdict is None else self.verdict.score
        share = self.progress
        noise = _QUANTILE(self.query.uniform("step", self.last.index)) if 0 < share < 1 else 0.0
        return share * end + sqrt(share * (1 - share)) * noise


def _steps(query: Query, tokens: int) -> int:
    """Into how many steps a chain is cut."""
    return max(1, round(tokens / (query.strategy.step_tokens or tokens)))
