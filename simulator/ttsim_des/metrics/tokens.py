"""Tokens that were delivered or taken in within the window, in closed form."""

from __future__ import annotations

from typing import NamedTuple

from ttsim_des.metrics.columns import column
from ttsim_des.metrics.gaps import Gaps
from ttsim_des.metrics.stats import exact_sum
from ttsim_des.metrics.window import Window
from ttsim_des.records.tables import Tables


class TokenCounts(NamedTuple):
    """Tokens by direction."""

    output: int
    prompt: int


def gaps_in_window(tables: Tables, window: Window) -> Gaps:
    """Inter-token gaps whose token was delivered in the window."""
    return Gaps(tables.token_gaps, None if window.from_zero else window.start_ns, window.end_ns)


def tokens_in_window(tables: Tables, window: Window) -> TokenCounts:
    """Output: first tokens and later ones delivered in the window. Prompt: of the requests first served in it.

    A request that delivers no token (a score) takes its prompt in when it finishes.
    """
    requests = tables.requests
    first, finish = column(requests, "first_token_ns"), column(requests, "finish_ns")
    served = window.holds(first) | ((first < 0) & (column(requests, "scheduled_ns") >= 0) & window.holds(finish))
    prompt = exact_sum(column(requests, "prompt_tokens")[served])
    return TokenCounts(int(window.holds(first).sum()) + gaps_in_window(tables, window).tokens, prompt)
