"""Uniform and normal variates of queries and their samples, the same however many of them are asked for."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

from ttsim_des.rng import Streams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FIRST_PAGE = 8


def sample_uniforms(streams: Streams, name: str, first_query: int, queries: int, samples: int) -> NDArray[np.float64]:
    """One uniform per (query, sample), the same however many samples are asked for; shape (queries, samples).

    The samples of a query lie on pages of 8, 8, 16, 32, 64 ... numbers, each page a stream of its own.
    """
    import numpy as np

    pages, end, width = [], 0, _FIRST_PAGE
    while end < samples:
        pages.append(streams.uniforms(f"{name}.sample.{end}", first_query, queries, width))
        end += width
        width = end
    return np.concatenate(pages, axis=1)[:, :samples]


def query_uniforms(streams: Streams, name: str, first_query: int, queries: int) -> NDArray[np.float64]:
    """One uniform per query, shape (queries,)."""
    return streams.uniforms(f"{name}.query", first_query, queries, 1)[:, 0]


def standard_normals(uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal quantiles.

    The standard library's (Wichura's AS 241, about 1e-16): 0.17 us a value against 0.015 us of scipy.special.ndtri,
    whose import costs 260 ms, or as much as 1.7 million values.
    """
    import numpy as np

    quantile = NormalDist().inv_cdf
    values = np.fromiter(map(quantile, uniforms.ravel().tolist()), dtype=np.float64, count=uniforms.size)
    return values.reshape(uniforms.shape)


def shuffled(uniforms: list[float], size: int) -> list[int]:
    """As many places out of `size` as there are uniforms: random orders of all places, one after the other.

    Fisher-Yates, keeping only the places that have moved, so the cost is that of the draws and not of the table.
    """
    places: list[int] = []
    moved: dict[int, int] = {}
    left = size
    for uniform in uniforms:
        chosen = int(uniform * left)
        left -= 1
        places.append(moved.get(chosen, chosen))
        moved[chosen] = moved.get(left, left)
        if left == 0:
            moved, left = {}, size
    return places
