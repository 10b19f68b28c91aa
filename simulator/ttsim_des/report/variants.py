"""Overrides as people read them: `tp=2` for `cluster.tp=2` where no other key that varies ends alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Variant = Sequence[str]


def shortened(variants: Iterable[Variant]) -> dict[tuple[str, ...], str]:
    """A short text for each variant: keys by their last parts, keys that never vary left out."""
    known = [tuple(variant) for variant in variants]
    keys = list(dict.fromkeys(_split(text)[0] for variant in known for text in variant))
    values = {key: {dict(map(_split, variant)).get(key) for variant in known} for key in keys}
    varied = [key for key in keys if len(values[key]) > 1] or keys
    ends = [key.rpartition(".")[2] for key in varied]
    names = {key: end if ends.count(end) == 1 else key for key, end in zip(varied, ends, strict=True)}
    found = {}
    for variant in known:
        parts = [f"{names[key]}={value}" for key, value in map(_split, variant) if key in names]
        found[variant] = " ".join(parts) or "as it is"
    return found


def _split(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value
