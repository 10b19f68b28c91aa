"""Speculative decoding in vLLM's terms: what was drafted, what was accepted, what was computed in vain."""

from __future__ import annotations

from typing import Any

from ttsim_des.metrics.columns import column, is_in
from ttsim_des.metrics.stats import exact_sum
from ttsim_des.metrics.window import Window
from ttsim_des.records.tables import GENERATOR, Tables


def speculation_section(tables: Tables, window: Window) -> dict[str, Any]:
    """Drafts of the window's requests; acceptance by position is of the whole run.

    `acceptance_length` is the mean of tokens per step that verified drafts: one, and those accepted.
    """
    requests, mine = tables.requests, window.requests
    names = ("draft_steps", "draft_tokens", "accepted_tokens", "rejected_tokens", "computed_tokens")
    steps, drafted, accepted, rejected, computed = (exact_sum(column(requests, name)[mine]) for name in names)
    return {
        "draft_steps": steps,
        "draft_tokens": drafted,
        "accepted_tokens": accepted,
        "acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_length": 1 + accepted / steps if steps else None,
        "rejected_tokens": rejected,
        "rejected_share": rejected / computed if computed else None,
        "acceptance_by_position": _by_position(tables),
    }


def _by_position(tables: Tables) -> list[float]:
    """Share of the steps with a draft at a position whose draft there was accepted, from position 1 on."""
    if not tables.drafts.num_rows:
        return []
    mine = is_in(tables.drafts, "pool", GENERATOR)
    position, drafted, accepted = (column(tables.drafts, name)[mine] for name in ("position", "drafted", "accepted"))
    rates = []
    for place in range(1, int(position.max(initial=0)) + 1):
        here = position == place
        rates.append(exact_sum(accepted[here]) / exact_sum(drafted[here]))
    return rates
