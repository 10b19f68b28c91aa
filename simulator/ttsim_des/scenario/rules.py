"""What must hold between the keys of a scenario, beyond the type and range of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ttsim_des.errors import Problem, nearest_name
from ttsim_des.scenario.salvage import Parts
from ttsim_des.scenario.schema import AcceptanceTable, LognormalTokens, TableTokens

STRATEGY_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single": ((), ()),
    "best_of_n": (("samples",), ("first", "verifier", "score_when", "score_tokens")),
    "self_consistency": (("samples",), ()),
    "adaptive_consistency": (("samples", "wave"), ("threshold",)),
    "first_finish": (("samples",), ("first",)),
    "beam_search": (("samples", "width", "step_tokens", "iterations"), ("verifier", "score_tokens")),
    "dvts": (("samples", "width", "step_tokens", "iterations"), ("verifier", "score_tokens")),
    "rebase": (("samples", "step_tokens", "iterations"), ("verifier", "score_tokens", "temperature")),
    "sequential_revision": (("rounds", "append_tokens"), ()),
    "budget_forcing": (("min_tokens",), ("rounds", "continue_share", "answer_tokens")),
    "agent_loop": (("rounds", "append_tokens", "think_s"), ()),
    "recorded_graph": (("graph",), ()),
}
"""The keys that each bundled strategy needs, and those that it takes (a test keeps the names equal to those of
`workload.strategies`, a higher layer)."""

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
    key, name = "workload.strategy", strategy.name[:60]
    if ":" in strategy.name:
        return  # a function of the user's takes what it likes
    if name not in STRATEGY_KEYS:
        yield Problem(
            f'"{name}" is not a strategy',
            key=f"{key}.name",
            expected=f"one of {', '.join(STRATEGY_KEYS)}, or file.py:function",
            nearest=nearest_name(name, STRATEGY_KEYS),
        )
        return
    needed, taken = STRATEGY_KEYS[name]
    given = {each for each in strategy.model_fields_set if getattr(strategy, each) is not None} - {"name"}
    for each in needed:
        if each not in given:
            yield Problem(f'missing, name = "{name}" needs it', key=f"{key}.{each}")
    for each in sorted(given - {*needed, *taken}):
        if each == "samples":
            if strategy.samples > 1:
                message = f'{strategy.samples} samples, but strategy "{name}" does not take their number'
                yield Problem(message, key=f"{key}.samples", expected='1, or another strategy such as "best_of_n"')
            continue
        takes = ", ".join((*needed, *taken)) or "no other key"
        hint = f"the key left out (--set {key}.{each}= removes it)"
        yield Problem(f'has no meaning: name = "{name}" takes {takes}', key=f"{key}.{each}", expected=hint)
    if strategy.first is not None and strategy.first > strategy.samples:
        message = f"waits for {strategy.first} samples of {strategy.samples}"
        yield Problem(message, key=f"{key}.first", expected=f"at most {key}.samples")
    if strategy.width is not None and strategy.width > strategy.samples:
        message = f"{strategy.width} is more than samples = {strategy.samples}"
        yield Problem(message, key=f"{key}.width", expected=f"at most {key}.samples")


def _verifier(parts: Parts) -> Iterator[Problem]:
    if parts.strategy is None or parts.has_verifier is None:
        return
    if parts.strategy.verifier == "verifier" and not parts.has_verifier:
        yield Problem('missing, workload.strategy.verifier = "verifier" needs it', key="verifier", expected="a table")
    name = parts.strategy.name
    may_ask = parts.strategy.verifier == "verifier" or ":" in name or name == "recorded_graph"
    if parts.has_verifier and not may_ask:
        message = "has no meaning: the strategy does not ask it"
        yield Problem(message, key="verifier", expected='workload.strategy.verifier = "verifier"')


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


ACCEPTANCE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "iid": (("rate",), ()),
    "positions": (("rates",), ()),
    "beta": (("concentration",), ("rate", "rates")),
    "output": (("tokens", "rates"), ()),
    "copying": (("enter", "stay", "offer"), ()),
    "recorded": (("file",), ()),
}
"""The keys that each acceptance process needs, and those that it takes."""


def _speculation(parts: Parts) -> Iterator[Problem]:
    if parts.engine is None or (asked := parts.engine.speculative) is None:
        return
    key = "engine.speculative"
    if asked.method == "draft_model" and asked.model is None:
        yield Problem('missing, method = "draft_model" needs it', key=f"{key}.model", expected="a model's name")
    for name, only in (("model", ("draft_model",)), ("draft_vocab", ("eagle3",))):
        if getattr(asked, name) is not None and asked.method not in only:
            yield Problem(
                f'has no meaning: method = "{asked.method}"', key=f"{key}.{name}", expected="the key left out"
            )
    if asked.tree is not None:
        if asked.method == "ngram":
            yield Problem('has no meaning: method = "ngram" drafts chains', key=f"{key}.tree")
        if sum(asked.tree) != asked.num_speculative_tokens:
            message = f"has {sum(asked.tree)} nodes, but num_speculative_tokens = {asked.num_speculative_tokens}"
            yield Problem(message, key=f"{key}.tree", expected="as many nodes as tokens are verified")
    table = asked.num_speculative_tokens_per_batch_size
    if table is not None:
        yield from _batch_table(table, f"{key}.num_speculative_tokens_per_batch_size")
    if (asked.policy == "adaptive" or table is not None) and asked.tree is not None:
        yield Problem("a tree has one size", key=f"{key}.tree", expected="a chain where drafts depend on the batch")
    if asked.policy == "adaptive" and table is not None:
        yield Problem("says what the batch decides already", key=f"{key}.policy", expected='"fixed"')
    yield from _acceptance(asked.acceptance, f"{key}.acceptance")
    may_be_async = asked.method != "ngram" and asked.policy != "oracle"
    if parts.engine.async_scheduling and not may_be_async:
        why = 'method = "ngram"' if asked.method == "ngram" else 'policy = "oracle"'
        message = f"{why} needs the tokens of a step before the next one can be planned"
        yield Problem(message, key="engine.async_scheduling", expected="false, or the key left out")


def _batch_table(table: list[list[int]], key: str) -> Iterator[Problem]:
    before = 0
    for first, last, drafts in table:
        if first > last or first <= before or drafts < 0:
            yield Problem(f"[{first}, {last}, {drafts}] does not follow", key=key, expected="ascending batch sizes")
            return
        before = last
    if table[0][0] != 1:
        yield Problem(f"begins at batch size {table[0][0]}", key=key, expected="1: every batch needs its drafts")


def _acceptance(table: AcceptanceTable, key: str) -> Iterator[Problem]:
    needed, taken = ACCEPTANCE_KEYS[table.process]
    given = {each for each in table.model_fields_set if getattr(table, each) is not None} - {"process"}
    for each in needed:
        if each not in given:
            yield Problem(f'missing, process = "{table.process}" needs it', key=f"{key}.{each}")
    for each in sorted(given - {*needed, *taken}):
        takes = ", ".join((*needed, *taken))
        yield Problem(f'has no meaning: process = "{table.process}" takes {takes}', key=f"{key}.{each}")
    if table.process == "beta" and (table.rate is None) == (table.rates is None):
        yield Problem('process = "beta" needs rate or rates, one of them', key=f"{key}.rate")
    if table.process == "beta" and (table.rate in (0.0, 1.0) or (table.rates and table.rates[0] in (0.0, 1.0))):
        yield Problem("a mean of 0 or 1 leaves nothing to vary", key=f"{key}.rate", expected="between 0 and 1")
    if table.process == "output" and table.tokens and table.rates:
        if len(table.tokens) != len(table.rates):
            message = f"{len(table.tokens)} places, but {len(table.rates)} rates"
            yield Problem(message, key=f"{key}.tokens", expected="one rate for each place")
        if sorted(set(table.tokens)) != table.tokens:
            yield Problem("does not ascend", key=f"{key}.tokens", expected="output tokens in ascending order")


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
    _verifier,
    _lengths,
    _batch,
    _speculation,
    _latency,
)
