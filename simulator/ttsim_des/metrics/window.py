"""Which queries count, and over which stretch of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ttsim_des.metrics.columns import column
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.stats import IntArray
from ttsim_des.records.tables import Tables
from ttsim_des.units import ns_to_s


@dataclass(frozen=True, slots=True)
class Window:
    """The window (start_ns, end_ns] and the queries that arrived in it, as masks over the rows of the tables.

    Terminating: everything, from 0 (included) to the end of the run. Steady: the first `warmup_fraction` of the
    queries by order of arrival are the warm-up; the window reaches from the last of their arrivals to the last
    arrival of all, and the queries that arrived in it are followed to their end, beyond the window.
    """

    start_ns: int
    end_ns: int
    from_zero: bool
    """The window includes its start: the run has no warm-up."""
    queries: NDArray[np.bool_]
    requests: NDArray[np.bool_]
    warmup_queries: int

    @classmethod
    def of(cls, tables: Tables, context: RunContext) -> Window:
        """The window of this run."""
        queries = tables.queries
        arrival = column(queries, "arrival_ns")
        warmup = int(context.warmup_fraction * arrival.size) if context.kind == "steady" else 0
        order = np.lexsort((column(queries, "query_id"), arrival))
        population = np.ones(arrival.size, dtype=np.bool_)
        population[order[:warmup]] = False
        start_ns = int(arrival[order[warmup - 1]]) if warmup else 0
        end_ns = tables.end_ns
        if context.kind == "steady" and arrival.size:
            end_ns = int(arrival[order[-1]])
        return cls(start_ns, end_ns, warmup == 0, population, _of_queries(tables, population), warmup)

    @property
    def length_ns(self) -> int:
        """Length of the window; 0 where all queries arrive together in a steady run."""
        return self.end_ns - self.start_ns

    @property
    def length_s(self) -> float:
        """Length of the window in seconds."""
        return ns_to_s(self.length_ns)

    def holds(self, times_ns: IntArray) -> NDArray[np.bool_]:
        """Which of these times lie in the window; -1 (never) does not."""
        after = times_ns >= 0 if self.from_zero else times_ns > self.start_ns
        return after & (times_ns <= self.end_ns)

    def per_s(self, amount: float) -> float | None:
        """`amount` per second of the window, None for an empty window."""
        return amount / self.length_s if self.length_ns > 0 else None


def _of_queries(tables: Tables, population: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The requests of the queries in the population."""
    return population[query_rows(tables.queries, tables.requests)]


def query_rows(queries: pa.Table, requests: pa.Table) -> NDArray[np.int32]:
    """The row of each request's query."""
    ids = column(queries, "query_id")
    order = np.argsort(ids, kind="stable").astype(np.int32)
    rows: NDArray[np.int32] = order[np.searchsorted(ids[order], column(requests, "query_id"))]
    return rows
