"""Numbers as people read them: seconds or milliseconds, thousands separated, a dash for what is not known."""

from __future__ import annotations

from collections.abc import Iterable

DASH = "-"


def time_unit(values_s: Iterable[float | None]) -> tuple[str, float]:
    """The unit that suits these durations together, and its factor from seconds: us, ms or s."""
    known = sorted(abs(value) for value in values_s if value)
    if not known:
        return "s", 1.0
    typical = known[len(known) // 2]
    if typical < 1e-4:
        return "us", 1e6
    return ("ms", 1e3) if typical < 1.0 else ("s", 1.0)


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent: 0.0123, 1.23, 12,345."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{round(value):,}"
    places = digits
    while places > 0 and abs(value) >= 10 ** (digits - places):
        places -= 1
    if abs(value) < 0.1:
        return f"{value:.{digits}g}"
    return f"{value:.{places}f}"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return DASH if share is None else f"{share * 100:.1f} %"


def duration(value_s: float | None) -> str:
    """A duration with its unit."""
    if value_s is None:
        return DASH
    if value_s == 0:
        return "0 s"
    unit, factor = time_unit([value_s])
    return f"{number(value_s * factor)} {unit}"


def usd(value: float | None) -> str:
    """An amount of money."""
    if value is None:
        return DASH
    return f"${value:,.2f}" if value >= 1 else f"${value:.3g}" if value >= 1e-4 else f"${value:.2e}"
