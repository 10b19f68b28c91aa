"""Seeded faults: each makes the product wrong in one small way, and the differential test must notice.

A fault is a pair: what to patch ("module:attribute") with a function of the original, or a wrapper of the step model.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from unittest.mock import patch

from ttsim_des.latency.shape import Run


class WrongRuns:
    """A step model whose `decode_run` is a little wrong; `step_ns` stays right."""

    def __init__(self, model, wrong):
        self.model, self.wrong = model, wrong
        self.step_ns, self.in_domain = model.step_ns, model.in_domain

    def decode_run(self, shape, max_steps):
        return self.wrong(self.model.decode_run(shape, max_steps), max_steps)


def _missed_knot(run, max_steps):
    return Run(min(max_steps, run.steps + 1), run.first_ns, run.increment_ns)


def _float_slope(run, _max_steps):
    """A slope that was a float once: rounded to 7 bits."""
    increment_ns = round(run.increment_ns * (1 + 2**-7))
    return Run(run.steps, run.first_ns, increment_ns)


def _slope_off_by_one(run, _max_steps):
    return Run(run.steps, run.first_ns, run.increment_ns + 1)


MODEL_FAULTS = {"missed knot": _missed_knot, "float slope": _float_slope, "slope off by one": _slope_off_by_one}


def _blocks_last_one_step_more(original):
    return lambda self, step, free_blocks, limit: min(limit, original(self, step, free_blocks, limit) + 1)


def _first_pop_after(original):
    return lambda self, time_ns: original(self, time_ns + 1)


def _short_leaps(original):
    return lambda self, plan: min(3, original(self, plan))


def _phases_in_wrong_order(original):
    def at(self, time_ns, phase, key, callback):
        phase = type(phase)({0: 2, 2: 0}.get(phase, phase))
        return original(self, time_ns, phase, key, callback)

    return at


def _put_off_take(kv):
    """Counts the next taking of blocks at once but does it only when the returned function is called."""
    owed = []

    def take(count):
        owed.append(count)
        kv.num_free_blocks -= count
        del kv.take

    def settle():
        vars(kv).pop("take", None)
        for count in owed:
            kv.num_free_blocks += count
            kv.take(count)

    kv.take = take
    return settle


def _takes_after_admitting(original):
    def plan(self, step):
        settle = _put_off_take(self.scheduler.kv)
        try:
            return original(self, step)
        finally:
            settle()

    return plan


def _leap_takes_after_freeing(original):
    def leap(self, *arguments):
        settle = _put_off_take(self.scheduler.kv)
        original(self, *arguments)

        def deliver(now_ns):
            del self.deliver
            delivery = self.deliver(now_ns)
            settle()
            return delivery

        self.deliver = deliver

    return leap


def _last_in_first_out(_original):
    return lambda self, request: self._requests.appendleft(request)


def _admits_in_a_preempting_step(original):
    def plan(self):
        plan, scheduler = original(self), self.scheduler
        if plan.preempted:
            budget = self.config.max_num_batched_tokens - self.num_seqs(plan)
            scheduler.schedule_waiting(plan, scheduler.prefill_threshold(), budget)
        return plan

    return plan


def _frees_named_blocks_first(original):
    """The order of a free: named blocks join the queue before the others, which matters where all go to its end."""

    def free(self, request):
        unnamed = request.num_blocks - request.num_registered_blocks
        request.num_blocks -= unnamed
        original(self, request)
        self._put_unnamed(unnamed)

    return free


def _frees_to_the_wrong_end(original):
    """Unnamed blocks go to the wrong end of the free queue."""

    def put(self, count):
        self._unnamed_first = not self._unnamed_first
        original(self, count)
        self._unnamed_first = not self._unnamed_first

    return put


def _newest_copy(original):
    return lambda copies, low, high: original(copies[::-1], low, high)


def _whole_prompt_is_a_hit(original):
    """The last known token may be a hit too."""

    def find_prefix(self, request):
        request.num_output_tokens += 1
        try:
            return original(self, request)
        finally:
            request.num_output_tokens -= 1

    return find_prefix


def _first_of_equals_is_last(_original):
    def pick(self):
        if self.config.scheduling_policy == "priority":
            return max(reversed(self.running), key=lambda request: (request.priority, request.arrival_ns))
        return self.running[-1]

    return pick


def _earliest_victim(_original):
    return lambda self: self.running[0]


def _preempted_goes_to_the_end(_original):
    return lambda self, request: self._requests.append(request)


def _threshold_for_the_lone(_original):
    return lambda self: self.config.long_prefill_token_threshold


def _hits_are_free(original):
    """Hits that lie in the free queue are not counted as needed."""

    def can_admit(self, request, hits, num_tokens, spare_blocks):
        hit = sum(piece.high - piece.low for piece in hits)
        return self.num_blocks(num_tokens) - hit + spare_blocks <= self.num_free_blocks

    return can_admit


def _no_cancel_at_a_steps_end(_original):
    return lambda self, now_ns: None


def _one_seat_more(original):
    def schedule_waiting(self, plan, threshold, budget):
        return original(self, plan, threshold, budget + 1)

    return schedule_waiting


CODE_FAULTS = {
    "KV horizon off by one": ("engine.batch:DecodeBatch.steps_within_blocks", _blocks_last_one_step_more),
    "input seen a step late": ("engine.leap:Leap.first_pop_seeing", _first_pop_after),
    "arrivals before step ends": ("timeline:Timeline.at", _phases_in_wrong_order),
    "decodes take blocks after admissions": ("engine.core:EngineCore._plan_implicitly", _takes_after_admitting),
    "a leap takes blocks after its end frees some": ("engine.core:EngineCore.leap", _leap_takes_after_freeing),
    "LIFO admission": ("engine.request_queue:FcfsQueue.add", _last_in_first_out),
    "admission in a preempting step": ("engine.core:EngineCore.plan", _admits_in_a_preempting_step),
    "named blocks freed before unnamed": ("engine.kv_cache:KVCacheManager.free", _frees_named_blocks_first),
    "freed blocks at the wrong end": ("engine.kv_cache:KVCacheManager._put_unnamed", _frees_to_the_wrong_end),
    "newest copy handed out": ("engine.kv_cache:_oldest_copy", _newest_copy),
    "last token can be a hit": ("engine.kv_cache:KVCacheManager.find_prefix", _whole_prompt_is_a_hit),
    "hits in the free queue cost nothing": ("engine.kv_cache:KVCacheManager.can_admit", _hits_are_free),
    "last of equal victims": ("engine.scheduler:Scheduler._pick_victim", _first_of_equals_is_last),
    "first request is the victim": ("engine.scheduler:Scheduler._pick_victim", _earliest_victim),
    "preempted request waits at the end": ("engine.request_queue:FcfsQueue.put_back", _preempted_goes_to_the_end),
    "lone request keeps the threshold": ("engine.scheduler:Scheduler.prefill_threshold", _threshold_for_the_lone),
    "cancels between steps only": ("engine.replica:Replica._take_cancels", _no_cancel_at_a_steps_end),
    "a token beyond the budget": ("engine.scheduler:Scheduler.schedule_waiting", _one_seat_more),
}

HARMLESS = {"leaps of three steps": ("engine.core:EngineCore.num_pops_unchanged", _short_leaps)}
"""Where a leap is cut cannot change a result, as long as it is not too late."""


@contextmanager
def planted(name):
    """The product with code fault `name` in it."""
    place, wrong = (CODE_FAULTS | HARMLESS)[name]
    module_name, path = place.split(":")
    owner = import_module(f"ttsim_des.{module_name}")
    *holders, attribute = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    with patch.object(owner, attribute, wrong(getattr(owner, attribute))):
        yield
