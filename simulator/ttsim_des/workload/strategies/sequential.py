"""Strategies that think on in one growing context."""

from __future__ import annotations

from ttsim_des.units import s_to_ns
from ttsim_des.workload.handle import Delay, Process, Query, Sample
from ttsim_des.workload.outcomes.draws import NO_ANSWER
from ttsim_des.workload.queries import Verdict

WAIT_TOKENS = 2
"""What budget forcing appends to make a model think on: "Wait" and a line break."""
CONTINUE_SHARE = 0.25
"""How long a forced continuation is, as a share of a fresh chain, unless told otherwise."""
ANSWER_TOKENS = 32


def sequential_revision(query: Query) -> Process:
    """Answer, feedback of `append_tokens`, and again, `rounds` answers in all; the last one counts."""
    sample: Sample | None = None
    for _ in range(query.strategy.rounds or 1):
        sample = query.spawn(parent=sample, append_tokens=(query.strategy.append_tokens or 0) if sample else 0)
        yield query.join([sample])
    return sample


def budget_forcing(query: Query) -> Process:
    """Make a chain that ends before `min_tokens` go on, at most `rounds` times; force an answer out of one that is cut.

    A continuation is a share of a fresh chain and has that one's outcome. A forced answer is the chain's own with the
    probability of the share of it that was there, else wrong (s1, arXiv 2501.19393).
    """
    asked = query.strategy
    tokens, verdict = query.draw()
    sample = query.spawn(tokens=tokens, verdict=verdict)
    yield query.join([sample])
    thought = sample.request.num_output_tokens
    for _ in range(asked.rounds or 1):
        room = query.max_tokens - thought
        if sample.request.finish_reason != "stop" or thought >= (asked.min_tokens or 0) or room < 1:
            break
        fresh, verdict = query.draw()
        tokens = max(1, round(fresh * (asked.continue_share or CONTINUE_SHARE)))
        sample = query.spawn(parent=sample, append_tokens=WAIT_TOKENS, tokens=tokens, max_tokens=room, verdict=verdict)
        yield query.join([sample])
        thought += sample.request.num_output_tokens
    if sample.request.finish_reason == "stop":
        return sample
    share = sample.request.num_output_tokens / tokens
    answer_tokens = asked.answer_tokens or ANSWER_TOKENS
    forced = verdict
    if verdict is not None and query.uniform("forced", 0) >= share:
        forced = Verdict(1 if verdict.answer in (0, NO_ANSWER) else verdict.answer, verdict.score)
    sample = query.spawn(
        parent=sample, append_tokens=WAIT_TOKENS, tokens=answer_tokens, max_tokens=answer_tokens + 1, verdict=forced
    )
    yield query.join([sample])
    return sample


def agent_loop(query: Query) -> Process:
    """`rounds` turns of one session; in between a tool runs for `think_s` and puts out `append_tokens`."""
    asked = query.strategy
    sample: Sample | None = None
    for turn in range(asked.rounds or 1):
        if turn:
            yield Delay(s_to_ns(asked.think_s or 0.0))
        sample = query.spawn(parent=sample, append_tokens=(asked.append_tokens or 0) if turn else 0)
        yield query.join([sample])
    return sample
