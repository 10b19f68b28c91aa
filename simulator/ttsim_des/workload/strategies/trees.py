"""Strategies that search over partial chains with a process reward model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import exp

from ttsim_des.workload.handle import Process, Query, Sample, Wait
from ttsim_des.workload.strategies.paths import Path

TEMPERATURE = 0.2
"""Of REBASE's weights, unless told otherwise (arXiv 2408.00724)."""


def beam_search(query: Query) -> Process:
    """`samples` beams; after each step the best samples / width go on, `width` times each; the last step is to the end.

    Beams that have finished are set aside; the search ends with as many finished as there were beams, or none left.
    """
    asked = query.strategy
    return (yield from _search(query, [asked.samples], max(1, asked.samples // _width(query))))


def dvts(query: Query) -> Process:
    """samples / width trees apart, each `width` wide: after each step the best of every tree goes on."""
    asked, width = query.strategy, _width(query)
    return (yield from _search(query, [width] * max(1, asked.samples // width), 1))


def _search(query: Query, sizes: Sequence[int], keep: int) -> Process:
    """Groups of so many beams; after each step the best `keep` of every group go on, as often as the group is large."""
    groups = [[Path.root(query) for _ in range(size)] for size in sizes]
    finished: list[list[Path]] = [[] for _ in groups]
    iterations = query.strategy.iterations or 1
    for iteration in range(iterations):
        beams = [beam for group in groups for beam in group]
        yield from _advance(query, beams, to_end=iteration == iterations - 1)
        for index, group in enumerate(groups):
            finished[index] += [beam for beam in group if beam.is_finished]
            active = [beam for beam in group if not beam.is_finished]
            done = len(finished[index]) >= (keep if len(sizes) > 1 else sizes[index])
            groups[index] = [] if done or not active else _expanded(_best(active)[:keep], sizes[index])
        if not any(groups):
            break
    return _chosen([beam for group in finished for beam in group])


def rebase(query: Query) -> Process:
    """`samples` chains; after each step every partial chain gets children by the softmax of its reward.

    Chains that have finished leave that many fewer children (arXiv 2408.00724).
    """
    asked = query.strategy
    beams, finished = [Path.root(query) for _ in range(asked.samples)], list[Path]()
    iterations = asked.iterations or 1
    for iteration in range(iterations):
        yield from _advance(query, beams, to_end=iteration == iterations - 1)
        finished += [beam for beam in beams if beam.is_finished]
        active = [beam for beam in beams if not beam.is_finished]
        budget = asked.samples - len(finished)
        if not active or budget <= 0:
            break
        beams = []
        for beam, children in zip(*_shares(active, budget, asked.temperature or TEMPERATURE), strict=True):
            beams += _expanded([beam], children)
    return _chosen(finished)


def _width(query: Query) -> int:
    return query.strategy.width or 1


def _advance(query: Query, beams: Sequence[Path], *, to_end: bool) -> Generator[Wait, list[Sample], None]:
    """One step of every beam, and then the verifier's look at all of them."""
    asked = query.strategy
    yield query.join([beam.step(to_end=to_end) for beam in beams])
    if asked.verifier is not None:
        texts = [beam.last for beam in beams if beam.last is not None]
        yield query.join([query.score(text, asked.verifier, asked.score_tokens or 0) for text in texts])


def _best(beams: Sequence[Path]) -> list[Path]:
    """By score, the earlier of equals first."""
    return sorted(beams, key=lambda beam: -beam.score())


def _expanded(beams: Sequence[Path], size: int) -> list[Path]:
    """The beams and forks of them, in turn, `size` in all."""
    return [beams[place] if place < len(beams) else beams[place % len(beams)].fork() for place in range(size)]


def _shares(beams: Sequence[Path], budget: int, temperature: float) -> tuple[list[Path], list[int]]:
    """Beams by reward and how many children each gets: its share of what is left, rounded, until none is left."""
    ordered = _best(beams)
    top = ordered[0].score()
    weights = [exp((beam.score() - top) / temperature) for beam in ordered]
    children, left, weight_left = [], budget, sum(weights)
    for weight in weights:
        given = round(left * weight / weight_left) if weight_left > 0 else 0
        children.append(given)
        left -= given
        weight_left -= weight
    return ordered, children


def _chosen(finished: Sequence[Path]) -> Sample | None:
    """The best-scored finished chain's last step."""
    if not finished:
        return None
    return _best(finished)[0].last
