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
from ttsim_des.workload.lengths import Lengths, RecordedLengths, make_lengths
from ttsim_des.workload.traces import Trace, scenario_trace

SHARED_OWNER = 0
"""Owner of the prompt positions that all queries have in common."""

_CHUNK_VALUES = 1 << 15
_CHUNK_QUERIES = 1024
_KEPT_VALUES = 1 << 21
_KEPT_CHUNKS = 64


def samples_per_query(workload: Workload) -> int:
    """Requests that one query causes, as far as the scenario says."""
    return 1 if workload.strategy.name == "single" else workload.strategy.samples


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
        self._width = samples_per_query(workload) if samples is None else samples
        self._chunk_queries = max(1, min(_CHUNK_QUERIES, _CHUNK_VALUES // self._width))
        self._chunks: OrderedDict[int, tuple[memoryview, memoryview]] = OrderedDict()
        self._wide: OrderedDict[int, memoryview] = OrderedDict()
        self._wide_values = 0
        self._first = self._count = 0
        self._prompt_tokens = self._output_tokens = memoryview(b"")

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
            return self._beyond(query_id, sample)
        offset = query_id - self._first
        if not 0 <= offset < self._count:
            offset = self._turn_to(query_id)
        tokens: int = self._output_tokens[offset * self._width + sample]
        return tokens

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
            outputs = self._outputs.tokens(self._streams, "workload.output", first, count, self._width)
            chunk = self._chunks[index] = (prompts.ravel().data, outputs.ravel().data)
            if len(self._chunks) > _KEPT_CHUNKS:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(index)
        self._first, self._count = first, count
        self._prompt_tokens, self._output_tokens = chunk
        return offset

    def _beyond(self, query_id: int, sample: int) -> int:
        """A sample past the chunk's width: draw this query alone, to the next power of two."""
        row = self._wide.get(query_id)
        if row is None or sample >= len(row):
            outputs = self._outputs.tokens(self._streams, "workload.output", query_id, 1, 1 << sample.bit_length())
            self._wide_values += outputs.size - (0 if row is None else len(row))
            row = self._wide[query_id] = outputs.ravel().data
            self._wide.move_to_end(query_id)
            while self._wide_values > _KEPT_VALUES and len(self._wide) > 1:
                self._wide_values -= len(self._wide.popitem(last=False)[1])
        tokens: int = row[sample]
        return tokens


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
