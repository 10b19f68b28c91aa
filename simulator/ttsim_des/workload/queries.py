"""The queries of a run: their prompts, and how long each of their samples turns out.

The scheduler must never see an output length. It is kept here, on the side of the outcomes, and handed out per
(query, sample) to whoever ends requests.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Workload
from ttsim_des.workload.lengths import Lengths, OutcomeLengths, RecordedLengths, make_lengths
from ttsim_des.workload.traces import Trace, scenario_trace

SHARED_OWNER = 0
"""Owner of the prompt positions that all queries have in common."""

_CHUNK_VALUES = 1 << 15
_CHUNK_QUERIES = 1024
_KEPT_VALUES = 1 << 21
_KEPT_CHUNKS = 64
_Worth = tuple[memoryview, memoryview] | None
"""Answers and scores of the samples of some queries, where outcomes are drawn."""


class QueryInput(NamedTuple):
    """What a query asks.

    `prompt` names the prompt's content: (owner, end) pairs in order, each owner covering the positions up to `end`
    (exclusive). Owner 0 is the prefix shared by all queries, owner `query_id + 1` the query's own prompt. An owner
    stands for its own tokens *and* everything before them, so two blocks of tokens are the same exactly when their
    index and the owner of their last position are.
    """

    query_id: int
    prompt_tokens: int
    prompt: tuple[tuple[int, int], ...]


class Verdict(NamedTuple):
    """What a sample is worth: its answer (0 is the right one, below 0 none) and a verifier's score."""

    answer: int
    score: float


class QuerySource:
    """Prompts and output lengths by query id, in any order; near-ascending order is fast.

    Everything is a function of (streams, query, sample), drawn for some 1,000 queries at once and forgotten when
    other queries need the room (16 MiB each for the common samples and for those beyond `samples`). `samples` is the
    number of samples per query that are drawn together, the strategy's number by default; asking for others is right
    but slower.
    """

    def __init__(
        self,
        workload: Workload,
        streams: Streams,
        base_dir: Path,
        *,
        samples: int | None = None,
        queries: int = 1 << 62,
    ) -> None:
        self._streams = streams
        self._shared = workload.shared_prefix_tokens
        trace = scenario_trace(workload.arrivals, base_dir)
        self._queries = queries if trace is None else min(queries, len(trace))
        self._prompts, self._outputs = query_lengths(workload, trace, base_dir)
        drawn = 1 if workload.strategy.name == "single" else workload.strategy.samples
        self._width = drawn if samples is None else samples
        self._chunk_queries = max(1, min(_CHUNK_QUERIES, _CHUNK_VALUES // self._width))
        self._chunks: OrderedDict[int, tuple[memoryview, memoryview, _Worth]] = OrderedDict()
        self._wide: OrderedDict[int, tuple[memoryview, _Worth]] = OrderedDict()
        self._wide_values = 0
        self._first = self._count = 0
        self._prompt_tokens = self._output_tokens = memoryview(b"")
        self._worth: _Worth = None
        self.has_outcomes = isinstance(self._outputs, OutcomeLengths)
        """Whether samples have answers and scores."""

    def query(self, query_id: int) -> QueryInput:
        """The prompt of a query."""
        offset = query_id - self._first
        if not 0 <= offset < self._count:
            offset = self._turn_to(query_id)
        own: int = self._prompt_tokens[offset]
        shared = self._shared
        if shared:
            return QueryInput(query_id, shared + own, ((SHARED_OWNER, shared), (query_id + 1, shared + own)))
        return QueryInput(query_id, own, ((query_id + 1, own),))

    def output_tokens(self, query_id: int, sample: int) -> int:
        """Tokens that this sample would generate if nothing stopped it: at least 1, possibly more than `max_tokens`."""
        if sample >= self._width:
            beyond: int = self._wide_row(query_id, sample)[0][sample]
            return beyond
        offset = query_id - self._first
        if not 0 <= offset < self._count:
            offset = self._turn_to(query_id)
        tokens: int = self._output_tokens[offset * self._width + sample]
        return tokens

    def verdict(self, query_id: int, sample: int) -> Verdict:
        """What this sample is worth if nothing cuts it short; ValueError without outcomes."""
        if sample >= self._width:
            worth, place = self._wide_row(query_id, sample)[1], sample
        else:
            offset = query_id - self._first
            if not 0 <= offset < self._count:
                offset = self._turn_to(query_id)
            worth, place = self._worth, offset * self._width + sample
        if worth is None:
            raise ValueError("the scenario's outputs have lengths only")
        return Verdict(worth[0][place], worth[1][place])

    def uniform(self, query_id: int, name: str, index: int) -> float:
        """A uniform variate of (query, name, index), whatever else was drawn."""
        return float(self._streams.uniforms(f"strategy.{name}.{index}", query_id, 1, 1)[0, 0])

    def _turn_to(self, query_id: int) -> int:
        """Make the chunk that holds a query the current one; the query's place in it."""
        index, offset = divmod(query_id, self._chunk_queries)
        first = query_id - offset
        count = min(self._chunk_queries, self._queries - first)
        if not 0 <= offset < count:
            raise IndexError(f"there is no query {query_id}")
        chunk = self._chunks.get(index)
        if chunk is None:
            prompts = self._prompts.tokens(self._streams, "workload.prompt", first, count, 1)
            chunk = self._chunks[index] = (prompts.ravel().data, *self._draw(first, count, self._width))
            if len(self._chunks) > _KEPT_CHUNKS:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(index)
        self._first, self._count = first, count
        self._prompt_tokens, self._output_tokens, self._worth = chunk
        return offset

    def _draw(self, first: int, count: int, width: int) -> tuple[memoryview, _Worth]:
        """Tokens, and answers and scores where there are any, of `width` samples of each query."""
        if not isinstance(self._outputs, OutcomeLengths):
            outputs = self._outputs.tokens(self._streams, "workload.output", first, count, width)
            return outputs.ravel().data, None
        draws = self._outputs.outcomes.draw(self._streams, first, count, width)
        return draws.tokens.ravel().data, (draws.answer.ravel().data, draws.score.ravel().data)

    def _wide_row(self, query_id: int, sample: int) -> tuple[memoryview, _Worth]:
        """For a sample past the chunk's width: the query alone, drawn to the next power of two."""
        row = self._wide.get(query_id)
        if row is None or sample >= len(row[0]):
            width = 1 << sample.bit_length()
            self._wide_values += width - (0 if row is None else len(row[0]))
            row = self._wide[query_id] = self._draw(query_id, 1, width)
            self._wide.move_to_end(query_id)
            while self._wide_values > _KEPT_VALUES and len(self._wide) > 1:
                self._wide_values -= len(self._wide.popitem(last=False)[1][0])
        return row


def query_lengths(workload: Workload, trace: Trace | None, base_dir: Path) -> tuple[Lengths, Lengths]:
    """Lengths of own prompts and of outputs: a trace's columns where it has them, else the scenario's distributions."""
    prompts: Lengths
    outputs: Lengths
    if trace is not None and trace.prompt_tokens is not None:
        prompts = RecordedLengths(trace.prompt_tokens)
    else:
        prompts = make_lengths(workload.prompt, base_dir, "workload.prompt")
    if trace is not None and trace.output_tokens is not None:
        outputs = RecordedLengths(trace.output_tokens)
    else:
        outputs = make_lengths(workload.output, base_dir, "workload.output")
    return prompts, outputs
