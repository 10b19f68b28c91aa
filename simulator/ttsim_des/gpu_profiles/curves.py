"""The measured curves of a profile: rows of one table that differ in their last axis alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ttsim_des.latency.profile import COLUMNS, GpuProfile

Floats = NDArray[np.float64]


class MeasuredCurve(NamedTuple):
    """Microseconds against one axis (tokens, context, bytes), with everything else in `key`."""

    key: tuple[int, ...]
    x: Floats
    us: Floats


def axis_of(family: str) -> str:
    """The axis along which a family is interpolated: its last column but the latency."""
    return COLUMNS[family][-2]


def keys_of(family: str) -> tuple[str, ...]:
    """The other numeric columns of a family."""
    return COLUMNS[family][1:-2]


def curves_of(profile: GpuProfile, family: str, label: str) -> Iterator[MeasuredCurve]:
    """All curves of a family and label, each sorted along its axis."""
    columns: dict[str, Any] = dict(profile.tables[family][label])
    names, axis = keys_of(family), axis_of(family)
    order = np.lexsort([columns[axis], *(columns[name] for name in reversed(names))])
    keys = np.stack([columns[name][order] for name in names], axis=1)
    x = columns[axis][order].astype(np.float64)
    us = columns["latency_us"][order].astype(np.float64)
    edges = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(x)], strict=True):
        yield MeasuredCurve(tuple(keys[start].tolist()), x[start:stop], us[start:stop])
