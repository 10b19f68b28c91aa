"""Points to measure: kernels and shapes that a model needs at given tensor-parallel degrees."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ttsim_des.latency.geometry import BYTES_PER_ELEMENT, ModelGeometry

FAMILIES = (
    "gemm",
    "context_attention",
    "decode_attention",
    "all_reduce",
    "elementwise",
    "chunk",
    "unequal",
    "sampler",
    "host",
)
"""In the order of measuring. The first four are the profile's tables, the rest stands behind meta.toml."""


@dataclass(frozen=True)
class Point:
    """One kernel call: `axes` are (name, value) in the order of the profile's columns."""

    family: str
    axes: tuple[tuple[str, int | str], ...]

    @classmethod
    def of(cls, family: str, **axes: int | str) -> Point:
        """A point by its axes."""
        return cls(family, tuple(axes.items()))

    def __getitem__(self, name: str) -> Any:
        """The value of an axis."""
        return dict(self.axes)[name]

    def key(self) -> str:
        """One line of text that stands for the point, the same in every run."""
        return json.dumps([self.family, dict(self.axes)])

    def at(self, **changed: int) -> Point:
        """The same call with other values on some axes."""
        return Point(self.family, tuple((name, changed.get(name, value)) for name, value in self.axes))


@dataclass(frozen=True)
class Heads:
    """Attention heads of one rank."""

    heads: int
    kv_heads: int
    head_dim: int

    def axes(self) -> dict[str, int | str]:
        """As a point has them, in its order."""
        return {"head_dim": self.head_dim, "kv_heads": self.kv_heads, "heads": self.heads}


@dataclass(frozen=True)
class Domain:
    """How far the profile is to reach. `memory_bytes`: the most that one point may hold."""

    max_tokens: int
    max_batch: int
    max_context: int
    memory_bytes: float


@dataclass(frozen=True)
class Needs:
    """What a model asks of the kernels at the given tensor-parallel degrees."""

    products: dict[str, tuple[tuple[int, int], ...]]
    """(n, k) of every matrix product by dtype; lm_head is always bf16."""
    heads: tuple[Heads, ...]
    kv_dtypes: tuple[str, ...]
    hidden: int
    intermediates: tuple[int, ...]
    vocab: int
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, geometry: ModelGeometry, tps: Sequence[int], dtypes: Sequence[str], kv_dtypes: Sequence[str]) -> Needs:
        """By the composition of latency/kernels.py."""
        products: dict[str, set[tuple[int, int]]] = {dtype: set() for dtype in ("bf16", *dtypes)}
        heads = set()
        for tp in tps:
            queries = geometry.heads_per_gpu(tp) * geometry.head_dim
            keys = geometry.kv_heads_per_gpu(tp) * geometry.head_dim
            inner = -(-geometry.intermediate // tp)
            shapes = {
                (queries + 2 * keys, geometry.hidden),
                (geometry.hidden, queries),
                (2 * inner, geometry.hidden),
                (geometry.hidden, inner),
            }
            for dtype in dtypes:
                products[dtype] |= shapes
            products["bf16"].add((geometry.vocab_per_gpu(tp), geometry.hidden))
            heads.add((geometry.heads_per_gpu(tp), geometry.kv_heads_per_gpu(tp), geometry.head_dim))
        return cls(
            {dtype: tuple(sorted(found)) for dtype, found in products.items()},
            tuple(Heads(*each) for each in sorted(heads)),
            tuple(kv_dtypes),
            geometry.hidden,
            tuple(sorted({-(-geometry.intermediate // tp) for tp in tps})),
            geometry.vocab,
            tuple(sorted(tp for tp in tps if tp > 1)),
        )


def steps(first: int, last: int, factor: int) -> list[int]:
    """`first`, times `factor` again and again, and `last`."""
    values = []
    while first < last:
        values.append(first)
        first *= factor
    return [*values, last]


def kv_bytes(point: Point) -> float:
    """Keys and values that an attention point holds."""
    each = 2 * point["kv_heads"] * point["head_dim"] * BYTES_PER_ELEMENT[point["kv_dtype"]]
    if point.family == "decode_attention":
        return float(point["batch"] * point["context"] * each)
    if point.family == "unequal":
        return float((point["batch"] * point["mean"] + point["longest"]) * each)
    if point.family == "chunk":
        return float((point["query"] + point["computed"]) * each)
    return float(point["batch"] * point["query"] * each)


@dataclass(frozen=True)
class Curve:
    """Points along one axis, coarse at first; `refine.py` adds those that interpolation misses."""

    axis: str
    points: tuple[Point, ...]


def curves(needs: Needs, domain: Domain, *, quick: bool) -> Iterator[Curve]:
    """The coarse grid of the first three families, a curve at a time."""
    factor = 4 if quick else 2
    tokens = steps(1, domain.max_tokens, factor)
    for dtype, shapes in needs.products.items():
        for n, k in shapes:
            yield Curve("m", tuple(Point.of("gemm", dtype=dtype, n=n, k=k, m=m) for m in tokens))
    for kv_dtype in needs.kv_dtypes:
        for heads in needs.heads:
            fixed: dict[str, int | str] = {"kv_dtype": kv_dtype, **heads.axes()}
            for batch in steps(1, min(8, domain.max_batch), 8 if quick else 2):
                queries = steps(1, min(domain.max_tokens, domain.max_context), 4)
                points = [Point.of("context_attention", **fixed, batch=batch, query=query) for query in queries]
                yield Curve(
                    "query", _fitting(points, domain, lambda p: p["batch"] * p["query"] <= 4 * domain.max_tokens)
                )
            for batch in steps(1, domain.max_batch, 8 if quick else 4):
                contexts = steps(min(16, domain.max_context), domain.max_context, 8 if quick else 4)
                points = [Point.of("decode_attention", **fixed, batch=batch, context=each) for each in contexts]
                yield Curve("context", _fitting(points, domain, lambda p: True))


def _fitting(points: list[Point], domain: Domain, wanted: Any) -> tuple[Point, ...]:
    """Those within memory; the first always."""
    return tuple(p for i, p in enumerate(points) if not i or (kv_bytes(p) <= domain.memory_bytes and wanted(p)))


def evidence(needs: Needs, domain: Domain, *, quick: bool, has_lengths: bool) -> list[Point]:
    """Points behind meta.toml's numbers and behind the rules that docs/latency.md has for what is not tabulated.

    `has_lengths`: whether the attention back end takes sequences of unequal lengths.
    """
    found = []
    for tokens in steps(1, domain.max_tokens, 8 if quick else 4):
        found.append(Point.of("elementwise", kind="norm", tokens=tokens, width=needs.hidden))
        for heads in needs.heads:
            width = (heads.heads + heads.kv_heads) * heads.head_dim
            found.append(Point.of("elementwise", kind="rotary", tokens=tokens, width=width))
        found += [
            Point.of("elementwise", kind="activation", tokens=tokens, width=inner) for inner in needs.intermediates
        ]
    first = needs.heads[0]
    fixed: dict[str, int | str] = {"kv_dtype": needs.kv_dtypes[0], **first.axes()}
    for query in steps(min(16, domain.max_tokens), min(2048, domain.max_tokens), 8):
        for computed in steps(min(256, domain.max_context), max(1, domain.max_context - query), 8):
            point = Point.of("chunk", **fixed, query=query, computed=computed)
            if kv_bytes(point) <= domain.memory_bytes:
                found.append(point)
    if has_lengths:
        for batch in steps(min(32, domain.max_batch), domain.max_batch, 2):
            for longest in steps(min(4096, domain.max_context), domain.max_context, 4):
                mean = max(1, min(1024, longest // 4))
                point = Point.of("unequal", **fixed, batch=batch, mean=mean, longest=longest)
                if kv_bytes(point) <= domain.memory_bytes:
                    found.append(point)
    found += [Point.of("sampler", rows=rows, vocab=needs.vocab) for rows in steps(1, domain.max_batch, 8)]
    found += [Point.of("host", sequences=each) for each in steps(1, domain.max_batch, 4)]
    return list(dict.fromkeys(found))


def collectives(needs: Needs, domain: Domain) -> list[Point]:
    """All-reduces of activations among the ranks, in a CUDA graph and launched eagerly."""
    most = max(1024, 2 * needs.hidden * domain.max_tokens)
    sizes = steps(1024, most, 4)
    return [
        Point.of("all_reduce", mode=mode, ranks=ranks, bytes=size)
        for ranks in needs.ranks
        for mode in ("graph", "eager")
        for size in sizes
    ]
