"""Many outcomes at once, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ttsim_des.rng import Streams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RIGHT = 0
"""The id of the right answer of every problem."""
NO_ANSWER = -1


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Outcomes of samples, each array of shape (queries, samples).

    `tokens` >= 1: where the chain ends by itself, or where its source cut it off. `answer`: RIGHT, another answer of
    the problem (1, 2, ...), or NO_ANSWER where the source cut it off. `score`: what an outcome reward model says of it.
    """

    tokens: NDArray[np.int64]
    answer: NDArray[np.int32]
    score: NDArray[np.float64]


class Outcomes(Protocol):
    """A population of problems with the samples that a model draws for them."""

    def draw(self, streams: Streams, first_query: int, queries: int, samples: int) -> Draws:
        """Outcomes of the samples 0 .. `samples` - 1 of consecutive queries, the same however many are asked for."""
        ...

    def mean(self, cap: int) -> float:
        """Expectation of min(tokens, cap)."""
        ...

    def largest(self) -> int:
        """No chain is longer."""
        ...
