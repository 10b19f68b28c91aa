"""How long prompts and outputs are: token counts of many (query, sample) pairs at once.

A count is a function of (streams, query, sample) alone. A run with more samples per query, or more queries, repeats
the counts of a smaller one, which is what makes common random numbers work. The samples of a query are alike: they
share the query's effect (lognormal) or its problem (table).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ttsim_des.errors import bad_input
from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import ConstantTokens, LognormalTokens, OutputDistribution, TableTokens
from ttsim_des.variates import query_uniforms, sample_uniforms, shuffled, standard_normals
from ttsim_des.workload.columns import TOKENS_MAX, codes, locate_file, read_columns, whole_numbers
from ttsim_des.workload.outcomes.draws import Outcomes
from ttsim_des.workload.outcomes.load import load_outcomes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Lengths(Protocol):
    """A distribution of token counts."""

    def tokens(self, streams: Streams, name: str, first_query: int, queries: int, samples: int) -> NDArray[np.int64]:
        """Counts of the samples 0 .. `samples` - 1 of consecutive queries, shape (queries, samples), each >= 1.

        `name` keeps the streams of prompts and of outputs apart.
        """
        ...

    def mean(self, cap: int) -> float:
        """Expectation of min(count, cap) over queries and samples."""
        ...

    def largest(self) -> int:
        """No count is larger."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantLengths:
    """Every count is `count`."""

    count: int

    def tokens(self, streams: Streams, name: str, first_query: int, queries: int, samples: int) -> NDArray[np.int64]:
        """See `Lengths`."""
        import numpy as np

        return np.full((queries, samples), self.count, dtype=np.int64)

    def mean(self, cap: int) -> float:
        """See `Lengths`."""
        return float(min(self.count, cap))

    def largest(self) -> int:
        """See `Lengths`."""
        return self.count


@dataclass(frozen=True, slots=True)
class LognormalLengths:
    """round(exp(mu + u + e)) clipped to [low, high].

    u ~ N(0, query_sigma) once per query, e ~ N(0, sample_sigma) once per sample.
    """

    mu: float
    query_sigma: float
    sample_sigma: float
    low: int
    high: int

    def tokens(self, streams: Streams, name: str, first_query: int, queries: int, samples: int) -> NDArray[np.int64]:
        """See `Lengths`."""
        import numpy as np

        log_tokens = np.full((queries, samples), self.mu)
        if self.query_sigma > 0:
            effects = standard_normals(query_uniforms(streams, name, first_query, queries))
            log_tokens += self.query_sigma * effects[:, np.newaxis]
        if self.sample_sigma > 0:
            effects = standard_normals(sample_uniforms(streams, name, first_query, queries, samples))
            log_tokens += self.sample_sigma * effects
        tokens: NDArray[np.int64] = np.clip(np.rint(np.exp(log_tokens)), self.low, self.high).astype(np.int64)
        return tokens

    def mean(self, cap: int) -> float:
        """See `Lengths`: the closed form for the unrounded count, within half a token of the rounded one.

        With X lognormal(mu, s), a <= b: E[clip(X, a, b)] = a F(a) + exp(mu + s^2/2) [G(b) - G(a)] + b [1 - F(b)], where
        F(x) = Phi((ln x - mu) / s) and G(x) = Phi((ln x - mu) / s - s).
        """
        low, high = min(self.low, cap), min(self.high, cap)
        sigma = math.hypot(self.query_sigma, self.sample_sigma)
        if sigma == 0:
            return min(max(math.exp(self.mu), low), high)
        z_low, z_high = ((math.log(bound) - self.mu) / sigma for bound in (low, high))
        middle = math.exp(self.mu + sigma * sigma / 2) * (_phi(z_high - sigma) - _phi(z_low - sigma))
        return low * _phi(z_low) + middle + high * _phi(-z_high)

    def largest(self) -> int:
        """See `Lengths`."""
        return self.high


def _phi(z: float) -> float:
    """Distribution function of the standard normal, accurate in both tails."""
    return math.erfc(-z / math.sqrt(2)) / 2


@dataclass(frozen=True, slots=True, eq=False)
class TableLengths:
    """Counts drawn from rows of measurements.

    Without problems every sample draws any row, with replacement. With problems every query draws one problem, each
    equally likely, and its samples draw that problem's rows in random order, each once before any comes again.
    """

    rows: NDArray[np.int64]
    """All rows, those of one problem side by side."""
    starts: NDArray[np.int64] | None
    """Index of each problem's first row, and the number of rows at the end; `None` without problems."""

    def tokens(self, streams: Streams, name: str, first_query: int, queries: int, samples: int) -> NDArray[np.int64]:
        """See `Lengths`."""
        import numpy as np

        uniforms = sample_uniforms(streams, name, first_query, queries, samples)
        if self.starts is None:
            return self.rows[(uniforms * len(self.rows)).astype(np.int64)]
        problems = len(self.starts) - 1
        problem = (query_uniforms(streams, name, first_query, queries) * problems).astype(np.int64)
        start, size = self.starts[problem], self.starts[problem + 1] - self.starts[problem]
        places = [shuffled(u, n) for u, n in zip(uniforms.tolist(), size.tolist(), strict=True)]
        return self.rows[start[:, np.newaxis] + np.array(places, dtype=np.int64)]

    def mean(self, cap: int) -> float:
        """See `Lengths`: exact."""
        import numpy as np

        capped = np.minimum(self.rows, cap)
        if self.starts is None:
            return float(capped.mean())
        return float((np.add.reduceat(capped, self.starts[:-1]) / np.diff(self.starts)).mean())

    def largest(self) -> int:
        """See `Lengths`."""
        return int(self.rows.max())


@dataclass(frozen=True, slots=True, eq=False)
class RecordedLengths:
    """Counts that a trace states: those of query q, whatever the sample, are `counts[q]`."""

    counts: NDArray[np.int64]

    def tokens(self, streams: Streams, name: str, first_query: int, queries: int, samples: int) -> NDArray[np.int64]:
        """See `Lengths`."""
        import numpy as np

        return np.repeat(self.counts[first_query : first_query + queries, np.newaxis], samples, axis=1)

    def mean(self, cap: int) -> float:
        """See `Lengths`: exact."""
        import numpy as np

        return float(np.minimum(self.counts, cap).mean())

    def largest(self) -> int:
        """See `Lengths`."""
        return int(self.counts.max())


@dataclass(frozen=True, slots=True)
class OutcomeLengths:
    """Lengths that are drawn with everything else that comes of a sample."""

    outcomes: Outcomes

    def tokens(self, streams: Streams, name: str, first_query: int, queries: int, samples: int) -> NDArray[np.int64]:
        """See `Lengths`; outcomes have streams of their own, whatever the `name`."""
        return self.outcomes.draw(streams, first_query, queries, samples).tokens

    def mean(self, cap: int) -> float:
        """See `Lengths`."""
        return self.outcomes.mean(cap)

    def largest(self) -> int:
        """See `Lengths`."""
        return self.outcomes.largest()


def make_lengths(table: OutputDistribution, base_dir: Path, key: str) -> Lengths:
    """The distribution that a scenario's table `key` (`workload.prompt` or `workload.output`) describes.

    Raises `InputError` when a file is missing or holds anything but whole numbers from 1.
    """
    if isinstance(table, ConstantTokens):
        return ConstantLengths(table.tokens)
    if isinstance(table, LognormalTokens):
        if table.min > table.max:
            raise bad_input(f"min {table.min} is above max {table.max}", key=f"{key}.min", expected="min <= max")
        mu = math.log(table.mean) - (table.query_sigma**2 + table.sample_sigma**2) / 2
        return LognormalLengths(mu, table.query_sigma, table.sample_sigma, table.min, table.max)
    if isinstance(table, TableTokens):
        return _read_table(table, base_dir, key)
    return OutcomeLengths(load_outcomes(table, base_dir, key))


def _read_table(table: TableTokens, base_dir: Path, key: str) -> TableLengths:
    import numpy as np

    path = locate_file(table.file, base_dir, f"{key}.file")
    required = [(table.column, f"{key}.column")]
    if table.problem_column is not None:
        required.append((table.problem_column, f"{key}.problem_column"))
    columns = read_columns(path, required, [], f"{key}.file")
    rows = whole_numbers(columns, table.column, path, f"{key}.column", low=1, high=TOKENS_MAX)
    if table.problem_column is None:
        return TableLengths(rows, None)
    problem = codes(columns, table.problem_column, path, f"{key}.problem_column")
    sizes = np.bincount(problem)
    return TableLengths(rows[np.argsort(problem, kind="stable")], np.concatenate(([0], np.cumsum(sizes))))
