"""Time is integer nanoseconds inside; these are the edges."""

from __future__ import annotations

NS_PER_S = 1_000_000_000
NS_PER_US = 1_000
GIB = 1 << 30


def s_to_ns(seconds: float) -> int:
    """Seconds to integer nanoseconds, rounded to the nearest (ties to even)."""
    return round(seconds * NS_PER_S)


def us_to_ns(microseconds: float) -> int:
    """Microseconds to integer nanoseconds, rounded to the nearest (ties to even)."""
    return round(microseconds * NS_PER_US)


def ns_to_s(nanoseconds: float) -> float:
    """Nanoseconds to seconds."""
    return nanoseconds / NS_PER_S
