"""Seeded faults: each makes the product wrong in one small way, and the differential test must notice.

A fault is a pair: what to patch ("module:attribute") with a function of the original, or a wrapper of the step model.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from unittest.mock import patch


class WrongRuns:
    """A step model whose `decode_run` is a little wrong; `step_ns` stays right."""

    def __init__(self, model, wrong):
        self.model, self.wrong = model, wrong
        self.step_ns, self.in_domain = model.step_ns, model.in_domain

    def decode_run(self, shape, max_steps):
        return self.wrong(self.model.decode_run(shape, max_steps), max_steps)


def _missed_knot(run, max_steps):
    return run._replace(steps=min(max_steps, run.steps + 1))


def _float_slope(run, _max_steps):
    """A slope that was a float once: rounded to 7 bits."""
    increment_ns = round(run.increment_ns * (1 + 2**-7))
    return run._replace(increment_ns=increment_ns)


def _slope_off_by_one(run, _max_steps):
    return run._replace(increment_ns=run.increment_ns + 1)


MODEL_FAULTS = {"missed knot": _missed_knot, "float slope": _float_slope, "slope off by one": _slope_off_by_one}


def _blocks_last_one_step_more(original):
    return lambda self, step, free_blocks, limit: min(limit, original(self, step, free_blocks, limit) + 1)


def _first_pop_after(original):
    return lambda self, time_ns: original(self, time_ns + 1)


def _short_leaps(original):
    return lambda self: min(3, original(self))


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

    def as_if_not_taken(original):
        def call(*arguments):
            kv.num_free_blocks += sum(owed)
            original(*arguments)
            kv.num_free_blocks -= sum(owed)

        return call

    def settle():
        for name in ("take", "_evict", "_put_unnamed"):
            vars(kv).pop(name, None)

    kv.take = take
    kv._evict, kv._put_unnamed = as_if_not_taken(kv._evict), as_if_not_taken(kv._put_unnamed)
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
    return lambda self, request: self.appendleft(request)


def _admits_in_a_preempting_step(original):
    def plan(self):
        plan, scheduler = original(self), self.scheduler
        if plan.preempted:
            budget = self.config.max_num_batched_tokens - self.num_seqs(plan)
            scheduler.schedule_waiting(plan, scheduler.prefill_threshold(), budget, self.num_seqs(plan))
        return plan

    return plan


def _frees_named_blocks_first(original):
    """The order of a free: named blocks join the queue before the others, which matters where all go to its end."""

    def free(self, request, tail=None):
        unnamed = request.num_blocks - request.num_registered_blocks
        request.num_blocks -= unnamed
        original(self, request, tail)
        if unnamed:
            self._put_unnamed(unnamed)

    return free


def _frees_to_the_wrong_end(original):
    """Unnamed blocks go to the wrong end of the free queue."""

    def put(self, count):
        self._unnamed_first = not self._unnamed_first
        original(self, count)
        self._unnamed_first = not self._unnamed_first

    return put


def _freed_blocks_make_up_for_taken_ones(original):
    """Named blocks that were taken before unnamed ones became free keep their names."""

    def put(self, count):
        if self._unnamed_first:
            self.num_free_blocks += count
        else:
            original(self, count)

    return put


def _across_the_domains_edge(_original):
    def runs(model, shape, steps, run):
        found = [run]
        while run.steps < steps:
            passed, seqs = run.steps, shape.decode_seqs
            steps -= passed
            shape = shape._replace(
                decode_ctx_sum=shape.decode_ctx_sum + passed * seqs, decode_ctx_max=shape.decode_ctx_max + passed
            )
            run = model.decode_run(shape, steps)
            found.append(run)
        return found

    return runs


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
        return next(reversed(self.running))

    return pick


def _earliest_victim(_original):
    return lambda self: next(iter(self.running))


def _preempted_goes_to_the_end(_original):
    return lambda self, request: self.append(request)


def _threshold_for_the_lone(_original):
    return lambda self: self.config.long_prefill_token_threshold


def _hits_are_free(original):
    """Hits that lie in the free queue are not counted as needed."""

    def can_admit(self, hits, num_tokens, spare_blocks):
        hit = sum(high - low for _, low, high in hits)
        return self.num_blocks(num_tokens) - hit + spare_blocks <= self.num_free_blocks

    return can_admit


def _no_cancel_at_a_steps_end(_original):
    return lambda self, now_ns: None


def _one_seat_more(original):
    def schedule_waiting(self, plan, threshold, budget, num_others):
        return original(self, plan, threshold, budget + 1, num_others)

    return schedule_waiting


def _inputs_come_late(_original):
    """What happens at the very instant is overlooked."""
    return lambda self, time_ns: not self._queue or self._queue[0][0] >= time_ns


def _one_token_more_alike(original):
    return lambda self, request, twin, num_hits, plan, budget: original(self, request, twin, num_hits, plan, budget + 1)


def _alike_without_a_reserve(original):
    """A sample like the one before is admitted although that leaves a block too few."""

    def admit(self, *arguments):
        self.kv.num_free_blocks += 1
        try:
            return original(self, *arguments)
        finally:
            self.kv.num_free_blocks -= 1

    return admit


def _every_result_is_alone(original):
    return lambda self, request, delivered_ns, *, is_alone: original(self, request, delivered_ns, is_alone=True)


def _no_lookahead(original):
    """Blocks for a step's tokens only, not for what is drafted behind them."""

    def missing(self, request, num_tokens):
        return -(-num_tokens // self.kv.block_size) - request.num_blocks

    return missing


def _padding_is_accepted(original):
    """Invalid drafts are judged like real ones."""

    def verify(self, request, num_drafts, *, is_padding, is_stale):
        return original(self, request, num_drafts, is_padding=False, is_stale=is_stale)

    return verify


def _drafts_are_not_rolled_back(original):
    def verify(self, request, num_drafts, *, is_padding, is_stale):
        computed = request.num_computed_tokens
        original(self, request, num_drafts, is_padding=is_padding, is_stale=is_stale)
        request.num_computed_tokens = computed

    return verify


def _drafts_as_the_batch_was(_original):
    """The number of drafts stays what it was when the batch changes."""
    return lambda self, num_seqs: self.num_speculative_tokens


def _longest_is_kept(_original):
    """The longest context is not looked for again when its sequence has left."""
    return lambda self, step: self._longest


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
    "freed blocks make up for taken ones": (
        "engine.kv_cache:KVCacheManager._put_unnamed",
        _freed_blocks_make_up_for_taken_ones,
    ),
    "a leap across the domain's edge": ("engine.leap:decode_runs", _across_the_domains_edge),
    "newest copy handed out": ("engine.kv_cache:_oldest_copy", _newest_copy),
    "last token can be a hit": ("engine.kv_cache:KVCacheManager.find_prefix", _whole_prompt_is_a_hit),
    "hits in the free queue cost nothing": ("engine.kv_cache:KVCacheManager.can_admit", _hits_are_free),
    "last of equal victims": ("engine.scheduler:Scheduler._pick_victim", _first_of_equals_is_last),
    "first request is the victim": ("engine.scheduler:Scheduler._pick_victim", _earliest_victim),
    "preempted request waits at the end": ("engine.request_queue:FcfsQueue.put_back", _preempted_goes_to_the_end),
    "lone request keeps the threshold": ("engine.scheduler:Scheduler.prefill_threshold", _threshold_for_the_lone),
    "cancels between steps only": ("engine.replica:Replica._take_cancels", _no_cancel_at_a_steps_end),
    "KV horizon off by one, with drafts": (
        "engine.growth_batch:GrowthBatch.steps_within_blocks",
        _blocks_last_one_step_more,
    ),
    "input seen a step late, with drafts": ("engine.growth_leap:GrowthLeap.first_pop_seeing", _first_pop_after),
    "no look-ahead": ("engine.scheduler:Scheduler.num_missing_blocks", _no_lookahead),
    "padding is accepted": ("engine.core:EngineCore._verify", _padding_is_accepted),
    "rejected drafts stay computed": ("engine.core:EngineCore._verify", _drafts_are_not_rolled_back),
    "drafts whatever the batch": ("engine.speculation:SpeculationConfig.num_drafts_after", _drafts_as_the_batch_was),
    "longest context of one that left": ("engine.growth_batch:GrowthBatch._longest_from", _longest_is_kept),
    "inputs at the instant of a leap's end overlooked": ("timeline:Timeline.is_quiet_until", _inputs_come_late),
    "a token beyond the budget, alike": ("engine.scheduler:Scheduler._admit_twin", _one_token_more_alike),
    "no reserve for samples alike": ("engine.scheduler:Scheduler._admit_twin", _alike_without_a_reserve),
    "each of several results is alone": ("simulation.client:Client.on_finish", _every_result_is_alone),
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
