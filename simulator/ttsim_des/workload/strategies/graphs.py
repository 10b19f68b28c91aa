"""Recorded graphs: who waited for whom in a workflow that really ran, replayed node by node.

A JSON Lines file, one node a line, the nodes of a graph one after the other; query q replays graph q, and starts over
behind the last. docs/strategies.md has the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.units import s_to_ns
from ttsim_des.workload.handle import Process, Query, Sample, Timer

KEY = "workload.strategy.graph"


class Node(BaseModel):
    """One node. It starts when `join` of its parents are done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: str | int
    node: str
    kind: Literal["decode", "score", "delay"] = "decode"
    parents: tuple[str, ...] = ()
    join: Literal["all", "any"] | Annotated[int, Field(ge=1)] = "all"
    kv_parent: str | None = None
    """Whose whole text the prompt begins with; the query's prompt when absent."""
    append_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Output tokens of a decode; the query's next draw when absent."""
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """The cap of a decode; the scenario's when absent."""
    delay_s: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    pool: str = "generator"
    answers: bool = False
    """The query is answered when this node is done, and what still runs is cancelled."""

    def needed(self) -> int:
        """How many parents must be done."""
        if self.join == "all":
            return len(self.parents)
        return min(1 if self.join == "any" else int(self.join), len(self.parents))


Graph = Sequence[Node]


def recorded_graph(query: Query) -> Process:
    """The nodes of one graph, each when enough of its parents are done."""
    graphs = read_graphs(Path(query.strategy.graph or ""))
    nodes = graphs[query.query_id % len(graphs)]
    started: dict[str, Sample | Timer] = {}
    last: Sample | None = None
    while True:
        for node in nodes:
            done = sum(parent in started and started[parent].is_done for parent in node.parents)
            if node.node not in started and done >= node.needed():
                started[node.node] = _start(query, node, started)
        running = [each for each in started.values() if not each.is_done]
        if not running:
            return last
        for sample in (yield query.join(running, 1)):
            last = sample
        for node in nodes:
            if node.answers and node.node in started and started[node.node].is_done:
                query.cancel(each for each in started.values() if isinstance(each, Sample))
                answer = started[node.node]
                return answer if isinstance(answer, Sample) else last


def _start(query: Query, node: Node, started: Mapping[str, Sample | Timer]) -> Sample | Timer:
    if node.kind == "delay":
        return query.timer(s_to_ns(node.delay_s))
    parent = None if node.kv_parent is None else started.get(node.kv_parent)
    text = parent if isinstance(parent, Sample) else None
    if node.kind == "score":
        return query.spawn(pool=node.pool, parent=text, append_tokens=node.append_tokens, tokens=0, max_tokens=0)
    return query.spawn(
        pool=node.pool,
        parent=text,
        append_tokens=node.append_tokens,
        tokens=node.tokens,
        max_tokens=node.max_tokens,
    )


@lru_cache(maxsize=4)
def read_graphs(path: Path) -> tuple[Graph, ...]:
    """All graphs of a file; InputError with the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise bad_input(f"cannot read {path}: {error}", key=KEY) from None
    graphs: dict[str | int, list[Node]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            node = Node.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise bad_input(f"{place}: {first['msg']}", key=KEY, where=where) from None
        nodes = graphs.setdefault(node.graph, [])
        known = {other.node for other in nodes}
        if node.node in known:
            raise bad_input(f"node {node.node!r} is there twice", key=KEY, where=where)
        for other in (*node.parents, *([] if node.kv_parent is None else [node.kv_parent])):
            if other not in known:
                raise bad_input(
                    f"node {node.node!r} names {other!r}, which is not above it",
                    key=KEY,
                    where=where,
                    nearest=nearest_name(other, known),
                )
        if node.kv_parent is not None and node.kv_parent not in node.parents:
            raise bad_input(
                f"node {node.node!r} has kv_parent {node.kv_parent!r} beside its parents", key=KEY, where=where
            )
        if node.join != "all" and node.kv_parent is not None and node.needed() < len(node.parents):
            raise bad_input(
                f"node {node.node!r} begins with {node.kv_parent!r}, so it must wait for all parents",
                key=KEY,
                where=where,
            )
        nodes.append(node)
    if not graphs:
        raise bad_input(f"{path} has no nodes", key=KEY)
    return tuple(tuple(nodes) for nodes in graphs.values())
