"""What all planning questions share: a scenario, the SLOs, where runs are kept, and who runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttsim_des.capacity.candidate import Candidate
from ttsim_des.capacity.executors import Executor
from ttsim_des.capacity.slo import Slo
from ttsim_des.capacity.sweep import run_sweep
from ttsim_des.capacity.task import tasks_of

MORE_REPLICATIONS = 4
"""While it is unclear whether SLOs are kept, up to so many times the replications asked for."""


def nobody(_: str) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Question:
    """A scenario, what must hold, and how it is simulated; all simulations share their draws."""

    scenario: str
    overrides: tuple[str, ...]
    seed: int | None
    slos: Sequence[Slo]
    replications: int
    out: Path
    """A sweep's directory: nothing runs twice."""
    executor: Executor
    progress: Callable[[str], None] = nobody

    def simulate(self, candidates: Sequence[Candidate], replications: int) -> None:
        """Run candidates and judge them; one whose queue grows in a replication keeps nothing."""
        variants = [candidate.variant for candidate in candidates]
        tasks = tasks_of(self.scenario, variants, self.overrides, self.seed, replications)
        results = run_sweep(tasks, self.out, self.executor)
        for place, candidate in enumerate(candidates):
            own = results[place * replications : (place + 1) * replications]
            candidate.runs = [result["metrics"] for result in own]
            candidate.states = {str(slo): slo.state(candidate.runs) for slo in self.slos}
            candidate.is_stable = all(result["is_stable"] for result in own)
            if not candidate.is_stable:
                candidate.why_not = "the queue grows"
                candidate.states = dict.fromkeys(candidate.states, "fails")

    def judge(self, candidates: Sequence[Candidate]) -> None:
        """Simulate until it is clear whether each keeps its SLOs, or `MORE_REPLICATIONS` times the replications."""
        rest, number = list(candidates), 1
        while rest and number <= MORE_REPLICATIONS * self.replications:
            self.simulate(rest, number)
            number = self.replications if number == 1 else 2 * number
            rest = [
                candidate
                for candidate in rest
                if candidate.is_stable and (len(candidate.runs) < self.replications or candidate.state == "unclear")
            ]
