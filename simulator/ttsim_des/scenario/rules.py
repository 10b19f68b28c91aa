"""What must hold between the keys of a scenario, beyond the type and range of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ttsim_des.errors import Problem, nearest_name
from ttsim_des.scenario.salvage import Parts
from ttsim_des.scenario.schema import LognormalTokens, TableTokens

STRATEGIES = ("single", "best_of_n")
"""The names of `workload.strategies` (a higher layer; a test keeps the two equal)."""

ARRIVAL_KEYS = {
    "poisson": ("rate_per_s",),
    "gamma": ("rate_per_s", "burstiness"),
    "constant": ("rate_per_s",),
    "closed_loop": ("concurrency",),
    "trace": ("file",),
    "together": (),
}
"""The keys that each arrival process needs; it takes no others."""


def broken_rules(parts: Parts) -> list[Problem]:
    """Every rule that the scenario breaks; rules about a part that is None are left out."""
    return [problem for rule in _RULES for problem in rule(parts)]


def _arrivals(parts: Parts) -> Iterator[Problem]:
    if (arrivals := parts.arrivals) is None:
        return
    needed = ARRIVAL_KEYS[arrivals.process]
    for name in ("rate_per_s", "burstiness", "concurrency", "file"):
        key, said = f"workload.arrivals.{name}", getattr(arrivals, name) is not None
        if name in needed and not said:
            yield Problem(f'missing, process = "{arrivals.process}" needs it', key=key)
        if said and name not in needed:
            takes = f"takes {' and '.join(needed)}" if needed else "takes no other key"
            hint = f"the key left out (--set {key}= removes it)"
            yield Problem(f'has no meaning: process = "{arrivals.process}" {takes}', key=key, expected=hint)
    if arrivals.file == "":
        yield Problem("is empty", key="workload.arrivals.file", expected="the name of a trace file")


def _experiment(parts: Parts) -> Iterator[Problem]:
    if parts.experiment is None or parts.arrivals is None:
        return
    if parts.experiment.kind == "steady" and parts.arrivals.process == "together":
        yield Problem(
            'a steady state needs arrivals over time, but process = "together" puts every query at time 0',
            key="experiment.kind",
            expected='"terminating", or another arrival process',
        )


def _strategy(parts: Parts) -> Iterator[Problem]:
    if (strategy := parts.strategy) is None:
        return
    key = "workload.strategy"
    if strategy.name not in STRATEGIES:
        yield Problem(
            f'"{strategy.name[:60]}" is not a strategy',
            key=f"{key}.name",
            expected=f"one of {', '.join(STRATEGIES)}",
            nearest=nearest_name(strategy.name[:60], STRATEGIES),
        )
    if strategy.name == "single" and strategy.samples > 1:
        message = f'{strategy.samples} samples, but strategy "single" asks once'
        yield Problem(message, key=f"{key}.samples", expected='1, or name = "best_of_n"')
    if strategy.first is not None and strategy.first > strategy.samples:
        message = f"waits for {strategy.first} samples of {strategy.samples}"
        yield Problem(message, key=f"{key}.first", expected=f"at most {key}.samples")


def _lengths(parts: Parts) -> Iterator[Problem]:
    for name, tokens in (("prompt", parts.prompt), ("output", parts.output)):
        key = f"workload.{name}"
        if isinstance(tokens, LognormalTokens) and tokens.min > tokens.max:
            yield Problem(f"{tokens.min} is above max = {tokens.max}", key=f"{key}.min", expected="min <= max")
        if isinstance(tokens, LognormalTokens) and tokens.mean > tokens.max >= tokens.min:
            message = f"{tokens.mean:g} is above max = {tokens.max}: every draw would be near the cap"
            yield Problem(message, key=f"{key}.mean", expected="mean <= max")
        if isinstance(tokens, TableTokens):
            for column in ("file", "column", "problem_column"):
                if getattr(tokens, column) == "":
                    yield Problem("is empty", key=f"{key}.{column}", expected="a name")


def _batch(parts: Parts) -> Iterator[Problem]:
    """vLLM's own start-up check: without chunks a step must hold the longest prompt."""
    if (engine := parts.engine) is None or engine.enable_chunked_prefill is not False:
        return
    budget, longest = engine.max_num_batched_tokens, engine.max_model_len
    if budget is not None and longest is not None and budget < longest:
        message = f"{budget} is below max_model_len = {longest}, and chunked prefill is off"
        expected = "at least max_model_len, or enable_chunked_prefill = true"
        yield Problem(message, key="engine.max_num_batched_tokens", expected=expected)


def _latency(parts: Parts) -> Iterator[Problem]:
    if (latency := parts.latency) is None or latency.model != "affine":
        return
    if latency.affine is None:
        yield Problem('missing, model = "affine" needs it', key="latency.affine", expected="a table [latency.affine]")
    elif not any(latency.affine.model_dump().values()):
        yield Problem("all coefficients are 0: steps would take no time", key="latency.affine", expected="one above 0")


_RULES: tuple[Callable[[Parts], Iterator[Problem]], ...] = (
    _arrivals,
    _experiment,
    _strategy,
    _lengths,
    _batch,
    _latency,
)
