"""What does not depend on load, found once for each workload by running it without any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ttsim_des.capacity.candidate import Candidate, add_bounds
from ttsim_des.capacity.question import Question
from ttsim_des.metrics.flat import Flat

RARER = 1000
"""Queries so much rarer meet nobody."""
NO_DRAFTS = "engine.speculative="
"""Drafts change when a token comes, not which: they would only cost time here."""


class Idle:
    """Runs without load, made when they are first asked for and shared by all candidates of a workload."""

    def __init__(self, question: Question, candidates: Sequence[Candidate]) -> None:
        self._question = question
        self._families = Counter(candidate.family for candidate in candidates)
        self._members: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            self._members.setdefault(self._key(candidate), []).append(candidate)
        self._runs: dict[str, list[Flat]] = {}

    def _key(self, candidate: Candidate) -> str:
        """Candidates that may run like others are compared with as many replicas: prefixes are hit in each of them."""
        alone = self._families[candidate.family] == 1
        return candidate.workload if alone else f"{candidate.workload}\n{candidate.spread}"

    def is_worth_asking(self, candidate: Candidate) -> bool:
        """Whether something can be learnt of it that is not known yet."""
        key = self._key(candidate)
        return bool(candidate.workload) and key not in self._runs and len(self._members[key]) > 1

    def ask(self, candidates: Sequence[Candidate]) -> None:
        """Run the workloads of these candidates, and tell all who share them their bounds and which SLO they miss."""
        chosen: dict[str, Candidate] = {}
        for candidate in candidates:
            key = self._key(candidate)
            fastest = min(self._members[key], key=lambda one: one.least_token_s)
            chosen[key] = Candidate((*fastest.variant, NO_DRAFTS, *_without_load(fastest)))
        self._question.progress(f"{len(chosen)} workloads without load")
        self._question.simulate(list(chosen.values()), self._question.replications)
        for key, alone in chosen.items():
            self._runs[key] = alone.runs
            for candidate in self._members[key]:
                add_bounds(candidate, alone.runs)
                missed = next((slo for slo in self._question.slos if candidate.cannot_keep(slo)), None)
                if missed is not None:
                    candidate.why_not = candidate.why_not or f"misses {missed} even without load"


def _without_load(candidate: Candidate) -> tuple[str, ...]:
    """Overrides that make queries rare; none where they come by file, all together, or one after another."""
    if candidate.rate_per_s is None:
        return ()
    return (f"workload.arrivals.rate_per_s={candidate.rate_per_s / RARER!r}",)
