"""The options of closed-loop tables, which `validate` and `calibrate` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ttsim_des.validation.closed_loop import Recipe

_OPTIONS = (
    click.option(
        "--where",
        multiple=True,
        metavar="COLUMN=VALUE,...",
        help="Closed loop: take rows with one of these values; repeatable.",
    ),
    click.option("--engine", default="vllm-0.12", show_default=True, help="Closed loop: the engine file."),
    click.option(
        "--jitter",
        type=click.FloatRange(0, 1),
        default=0.05,
        show_default=True,
        help="Closed loop: relative spread of prompt and output lengths.",
    ),
    click.option(
        "--requests-per-concurrency",
        type=click.IntRange(1, 1000),
        default=6,
        show_default=True,
        help="Closed loop: requests in all for each one in flight.",
    ),
    click.option(
        "--max-num-batched-tokens",
        type=click.IntRange(1, 1_000_000),
        default=16384,
        show_default=True,
        help="Closed loop: token budget of a step.",
    ),
    click.option("--kv-dtype", default="bf16", show_default=True, help="Closed loop: of the KV cache; bf16 or fp8."),
)


def closed_loop_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add them to a command, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def recipe(
    engine: str, jitter: float, requests_per_concurrency: int, max_num_batched_tokens: int, kv_dtype: str
) -> Recipe:
    """The recipe that they describe."""
    from ttsim_des.validation.closed_loop import Recipe

    return Recipe(
        engine=engine,
        jitter=jitter,
        requests_per_concurrency=requests_per_concurrency,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_dtype=kv_dtype,
    )
