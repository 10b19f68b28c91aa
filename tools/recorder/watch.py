"""Hooks on a vLLM V1 scheduler: every step's schedule, every delivery, on a clock of one's choice.

Works in the process of the engine core. What is read: `SchedulerOutput` (who computes how many tokens, drafts,
preemptions), queues and free blocks after scheduling, and `EngineCoreOutputs` (new tokens, finishes).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

COUNTS = (
    *("prefill_reqs", "prefill_tokens", "decode_reqs", "decode_tokens", "spec_tokens"),
    *("sum_ctx", "qk_pairs", "decode_ctx", "prefill_qk"),
)
"""What is summed over the requests of a step."""


class CpuClock:
    """Seconds of this thread's CPU time inside engine steps: free of what else runs there, and of the recorder.

    Between steps the clock stands still; idle time is skipped.
    """

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """The time now."""
        return self._elapsed + (0.0 if self._since is None else time.thread_time() - self._since)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """The clock runs."""
        self._since = time.thread_time()
        try:
            yield
        finally:
            self._since = None

    def step_start(self) -> float:
        """When the step that runs began."""
        return self._elapsed

    def stop_at(self, when_s: float) -> None:
        """What happens in a step after this moment does not count: the next step begins here."""
        self._elapsed = when_s

    def skip_to(self, when_s: float) -> None:
        """Idle until then."""
        self._elapsed = max(self._elapsed, when_s)


class WallClock:
    """Seconds of real time; idling sleeps."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        """The time now."""
        return time.perf_counter() - self._start

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Real time runs anyway."""
        yield

    def step_start(self) -> float:
        """Now, which is when scheduling begins."""
        return self()

    def stop_at(self, when_s: float) -> None:
        """Real time does not stop."""

    def skip_to(self, when_s: float) -> None:
        """Sleep until then."""
        time.sleep(max(0.0, when_s - self()))


@dataclass(slots=True)
class Watched:
    """One engine request, as requests.jsonl has it (docs/conformance.md)."""

    fixed: dict[str, Any]
    prompt_tokens: int
    cached_tokens: int | None = None
    first_sched_s: float | None = None
    preemptions: int = 0
    recomputes: list[tuple[float, int]] = field(default_factory=list)
    spec_drafted: int = 0
    spec_accepted: int = 0
    chunks: list[tuple[float, int]] = field(default_factory=list)
    finish_s: float | None = None
    finish_reason: str | None = None

    def row(self) -> dict[str, Any]:
        """The line of requests.jsonl."""
        tokens = sum(tokens for _, tokens in self.chunks)
        row = {
            **self.fixed,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "first_sched_s": self.first_sched_s,
            "first_token_s": self.chunks[0][0] if self.chunks else None,
            "finish_s": self.finish_s,
            "preemptions": self.preemptions,
            "recomputes": self.recomputes,
            "spec_drafted": self.spec_drafted,
            "spec_accepted": self.spec_accepted,
            "chunks": self.chunks,
            "output_tokens": tokens,
        }
        return row if self.finish_reason in (None, "length") else {**row, "finish_reason": self.finish_reason}


@dataclass(slots=True)
class Log:
    """One recording: its clock, its requests in the order of adding, its steps."""

    clock: CpuClock | WallClock
    requests: list[Watched] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)


class StepWatch:
    """Replaces `schedule`, `update_from_output` and `add_request` of one scheduler by versions that take notes.

    Notes go to `log`, which may be exchanged while the engine is idle. `before_update` is called when a step's result
    is there and before it is handed out: where vLLM's engine core takes cancels.
    """

    def __init__(self, scheduler: Any, log: Log, before_update: Callable[[], None] = lambda: None) -> None:
        self.log = log
        self._before_update = before_update
        self._scheduler = scheduler
        self._by_id: dict[str, int] = {}
        self._preempted: set[str] = set()
        self._open: dict[int, dict[str, Any]] = {}
        self._next: Watched | None = None
        self._schedule, scheduler.schedule = scheduler.schedule, self._watched_schedule
        self._update, scheduler.update_from_output = scheduler.update_from_output, self._watched_update
        self._add, scheduler.add_request = scheduler.add_request, self._watched_add

    def expect(self, watched: Watched) -> None:
        """The next request that the scheduler is given is this one."""
        self._next = watched

    def _watched_add(self, request: Any) -> Any:
        if self._next is not None:
            self._by_id[request.request_id] = len(self.log.requests)
            self.log.requests.append(self._next)
            self._next = None
        return self._add(request)

    def _watched_schedule(self, *arguments: Any, **named: Any) -> Any:
        start_s = self.log.clock.step_start()
        output = self._schedule(*arguments, **named)
        scheduled_s = self.log.clock()
        lost = output.preempted_req_ids or set()
        for name in lost:
            self._preempted.add(name)
            if name in self._by_id:
                self.log.requests[self._by_id[name]].preemptions += 1
        if output.num_scheduled_tokens:
            self._open[id(output)] = self._noted(output, start_s, scheduled_s, lost)
        return output

    def _noted(self, output: Any, start_s: float, scheduled_s: float, lost: set[str]) -> dict[str, Any]:
        """The part of a step's line that scheduling knows."""
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        step = dict.fromkeys(COUNTS, 0)
        schedule = []
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.log.requests[self._by_id[name]]
            computed, drafts = before[name], len(output.scheduled_spec_decode_tokens.get(name, ()))
            if request.first_sched_s is None:
                request.first_sched_s, request.cached_tokens = _stamp(start_s), computed
            elif name in self._preempted:
                request.recomputes.append((_stamp(start_s), computed))
            self._preempted.discard(name)
            pairs = tokens * computed + tokens * (tokens + 1) // 2
            step["sum_ctx"] += computed
            step["qk_pairs"] += pairs
            step["spec_tokens"] += drafts
            request.spec_drafted += drafts
            if computed >= request.prompt_tokens and tokens - drafts == 1:
                kind = "d"
                step["decode_reqs"] += 1
                step["decode_tokens"] += tokens
                step["decode_ctx"] += computed + tokens
            else:
                kind = "p"
                step["prefill_reqs"] += 1
                step["prefill_tokens"] += tokens
                step["prefill_qk"] += pairs
            schedule.append(f"{self._by_id[name]}:{tokens}:{computed}:{drafts}:{kind}")
        scheduler = self._scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        skipped = getattr(scheduler, "skipped_waiting", ())
        return {
            "start_s": _stamp(start_s),
            "sched_s": _stamp(scheduled_s - start_s),
            "n_sched": len(schedule),
            **step,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting) + len(skipped),
            "free_blocks": free,
            "used_blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1 - free,
            "n_preempted": len(lost),
            "preempted": " ".join(str(self._by_id[name]) for name in lost),
            "sched": " ".join(schedule),
        }

    def _watched_update(self, output: Any, result: Any, *more: Any, **named: Any) -> Any:
        drafts = {name: len(tokens) for name, tokens in output.scheduled_spec_decode_tokens.items()}
        self._before_update()
        outputs = self._update(output, result, *more, **named)
        end_s = _stamp(self.log.clock())
        self.log.clock.stop_at(end_s)
        step = self._open.pop(id(output), None)
        delivered = accepted = 0
        for each in outputs.values():
            for one in each.outputs:
                if one.request_id not in self._by_id:
                    continue
                request = self.log.requests[self._by_id[one.request_id]]
                tokens = len(one.new_token_ids)
                if tokens:
                    request.chunks.append((end_s, tokens))
                    delivered += tokens
                    if one.request_id in drafts:
                        accepted += tokens - 1
                        request.spec_accepted += tokens - 1
                if one.finish_reason is not None:
                    request.finish_s, request.finish_reason = end_s, str(one.finish_reason)
        if step is not None:
            done = {"end_s": end_s, "spec_accepted": accepted, "out_tokens": delivered}
            self.log.steps.append({"step": len(self.log.steps), **step, **done})
        return outputs


def _stamp(seconds: float) -> float:
    """Microseconds are as fine as the clocks are true."""
    return round(seconds, 6)
