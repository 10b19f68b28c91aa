"""How long a batch stays the same by itself: what the engine can foresee of its own future.

Inputs from outside are not foreseen; they cut a leap when they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ttsim_des.engine.request import Outcome, Request, Scheduled, Status
from ttsim_des.engine.scheduler import Plan, Scheduler


def num_final_tokens(request: Request, outcome: Outcome, max_model_len: int) -> int:
    """How many tokens a request will have when it ends: by itself, at its cap, or at the model's length."""
    return min(outcome.output_tokens, request.max_tokens, max_model_len - request.prompt_tokens)


def num_pops_unchanged(
    plan: Plan, ahead: Sequence[Scheduled], scheduler: Scheduler, outcomes: Mapping[int, Outcome]
) -> int:
    """For how many pops the batch just planned goes on as it is; only the last of them may change something.

    `ahead` is the step in flight before it (asynchronous scheduling; else empty). At most 1 means: no leap.

    While nobody leaves, nobody is admitted either: seats and budget stay taken and free blocks only become fewer.
    The exception is a step that preempted somebody, because such a step admits nobody and the next one may.
    """
    config = scheduler.config
    if plan.preempted or not plan.is_pure_decode:
        return 1
    requests = [entry.request for entry in plan.entries]
    if config.async_scheduling and (len(ahead) != len(requests) or _live_samplers(ahead) != requests):
        return 1
    pops = min(_pops_left(request, outcomes[request.request_id], scheduler) for request in requests)
    if pops <= 1:
        return 1
    kv = scheduler.kv
    rooms = [len(request.block_ids) * kv.block_size - request.num_computed_tokens for request in requests]
    return 1 + num_steps_within_blocks(rooms, kv.block_size, kv.num_free_blocks, pops - 1)


def _pops_left(request: Request, outcome: Outcome, scheduler: Scheduler) -> int:
    config, num_output = scheduler.config, request.num_output_tokens
    left = num_final_tokens(request, outcome, config.max_model_len) - num_output
    if outcome.milestones:
        left = min(left, outcome.milestones[0] - num_output)
    if config.async_scheduling:  # it must also be scheduled each time, one token ahead of what is known
        left = min(left, request.max_tokens - 1 - num_output, config.max_model_len - request.num_computed_tokens)
    return left


def _live_samplers(entries: Sequence[Scheduled]) -> list[Request]:
    return [
        entry.request
        for entry in entries
        if entry.samples and entry.request.status is Status.RUNNING and entry.epoch == entry.request.preemptions
    ]


def num_steps_within_blocks(rooms: Sequence[int], block_size: int, free_blocks: int, limit: int) -> int:
    """How many more one-token steps (at most `limit`) a batch can take before the free blocks run out.

    `rooms`: for each sequence, the tokens that still fit into the blocks that it holds.
    """
    if len(rooms) * -(-limit // block_size) <= free_blocks:
        return limit
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        needed = sum(-(-(middle - room) // block_size) for room in rooms if middle > room)
        if needed <= free_blocks:
            low = middle
        else:
            high = middle - 1
    return low
