"""The parametric model of outcomes: problems differ in difficulty, their samples vary, wrong answers run longer.

Of a problem, z and w are standard normal: z is how easy it is, w its length beside that. Its samples are right with
probability p = Phi(ease + ease_spread z), and

    log tokens = mu + between_sigma (-rho z + sqrt(1 - rho^2) w) + within_sigma e + wrong_log_ratio [wrong]

with e from Student's t of 4 degrees of freedom, stretched by 1 + skew above its median and 1 - skew below.
A wrong sample gives the k-th wrong answer with probability repeat (1 - repeat)^(k-1), so votes can go wrong together.
Chains are cut at `max_tokens` and then have no answer, unless `cut_answers`: some sources cut chains that had answered.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, NamedTuple

from ttsim_des.rng import Streams
from ttsim_des.variates import sample_uniforms, standard_normals
from ttsim_des.workload.outcomes.draws import NO_ANSWER, RIGHT, Draws
from ttsim_des.workload.outcomes.scores import drawn_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_WRONG_ANSWERS = 1000
MEAN_PROBLEMS = 4096
MEAN_SAMPLES = 8
"""Drawn once to know the mean of a model, with streams of its own."""


class Parameters(NamedTuple):
    """See the module; lengths are in log tokens."""

    mu: float
    between_sigma: float
    within_sigma: float
    skew: float
    rho: float
    wrong_log_ratio: float
    ease: float
    ease_spread: float
    repeat: float
    max_tokens: int
    cut_answers: bool = False


class Uniforms(NamedTuple):
    """What a draw of problems and their samples is made of; each value in (0, 1)."""

    ease: NDArray[np.float64]
    length: NDArray[np.float64]
    sample_length: NDArray[np.float64]
    sample_right: NDArray[np.float64]
    sample_answer: NDArray[np.float64]


class ModelOutcomes:
    """Outcomes of a parametric model; implements `Outcomes`."""

    def __init__(self, parameters: Parameters, verifier_auc: float) -> None:
        self.parameters, self.verifier_auc = parameters, verifier_auc

    def draw(self, streams: Streams, first_query: int, queries: int, samples: int) -> Draws:
        """See `Outcomes`."""
        problem = streams.uniforms("outcome.problem", first_query, queries, 2)
        per_sample = (
            sample_uniforms(streams, f"outcome.{name}", first_query, queries, samples)
            for name in ("length", "right", "answer")
        )
        tokens, answer = chains(self.parameters, Uniforms(problem[:, 0], problem[:, 1], *per_sample))
        return Draws(tokens, answer, drawn_scores(streams, first_query, answer, self.verifier_auc))

    def mean(self, cap: int) -> float:
        """See `Outcomes`: measured on 32,768 draws of its own."""
        import numpy as np

        tokens = self.draw(Streams(0), 0, MEAN_PROBLEMS, MEAN_SAMPLES).tokens
        return float(np.minimum(tokens, cap).mean())

    def largest(self) -> int:
        """See `Outcomes`."""
        return self.parameters.max_tokens


def chains(parameters: Parameters, uniforms: Uniforms) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Tokens and answers of problems' samples, shape (problems, samples)."""
    import numpy as np

    ease, length = standard_normals(uniforms.ease)[:, None], standard_normals(uniforms.length)[:, None]
    p_right = _phi(parameters.ease + parameters.ease_spread * ease)
    wrong = uniforms.sample_right >= p_right
    rho = parameters.rho
    between = parameters.between_sigma * (-rho * ease + np.sqrt(1 - rho * rho) * length)
    log_tokens = parameters.mu + between + parameters.wrong_log_ratio * wrong
    log_tokens = log_tokens + parameters.within_sigma * skewed_t4(uniforms.sample_length, parameters.skew)
    tokens = np.clip(np.rint(np.exp(np.minimum(log_tokens, log(parameters.max_tokens)))), 1, None).astype(np.int64)
    answer = np.where(wrong, wrong_answers(uniforms.sample_answer, parameters.repeat), RIGHT).astype(np.int32)
    if not parameters.cut_answers:
        answer[log_tokens >= log(parameters.max_tokens)] = NO_ANSWER
    return tokens, answer


def skewed_t4(uniforms: NDArray[np.float64], skew: float) -> NDArray[np.float64]:
    """Student's t of 4 degrees of freedom (Shaw 2006 has the closed form), its halves stretched by 1 +- `skew`."""
    import numpy as np

    root = 2 * np.sqrt(uniforms * (1 - uniforms))
    size = 2 * np.sqrt(np.maximum(np.cos(np.arccos(root) / 3) / root - 1, 0))
    upper = uniforms > 0.5
    stretched: NDArray[np.float64] = np.where(upper, (1 + skew) * size, -(1 - skew) * size)
    return stretched


def wrong_answers(uniforms: NDArray[np.float64], repeat: float) -> NDArray[np.float64]:
    """Ids 1, 2, ... of wrong answers: the next less popular one has 1 - `repeat` of the share of the one before."""
    import numpy as np

    if repeat >= 1:
        return np.ones_like(uniforms)
    if repeat <= 0:
        return 1 + np.floor(uniforms * MOST_WRONG_ANSWERS)
    answers: NDArray[np.float64] = 1 + np.minimum(np.floor(np.log(uniforms) / log(1 - repeat)), MOST_WRONG_ANSWERS)
    return answers


def _phi(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard normal distribution function."""
    from math import erfc, sqrt

    import numpy as np

    flat = np.fromiter((erfc(-value / sqrt(2)) / 2 for value in values.ravel().tolist()), np.float64, values.size)
    return flat.reshape(values.shape)
