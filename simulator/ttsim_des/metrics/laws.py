"""The laws that the record tables of a run must obey, whatever the scenario.

`check_laws` returns the broken ones as text; an empty list is a sound run. docs/metrics.md states each law in full.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ttsim_des.metrics.columns import column, flags, is_in
from ttsim_des.metrics.context import RunContext
from ttsim_des.metrics.runs import StepRuns, points, replica_codes
from ttsim_des.metrics.stats import IntArray, exact_sum
from ttsim_des.metrics.window import query_rows
from ttsim_des.records.tables import GENERATOR, Tables

REQUEST_STATES = ("finished", "cancelled", "running", "waiting", "refused")
QUERY_STATES = ("finished", "open", "refused")


def check_laws(tables: Tables, context: RunContext, *, full: bool = True) -> list[str]:
    """Broken laws of a run; `full` adds those that compare steps with requests (needs steps and token gaps).

    Takes all rows into memory.
    """
    tables = tables.in_memory()
    broken = [*_identities(tables)]
    if not broken:  # the other laws take identities for granted
        broken += _stamps(tables)
        for name, pool in {GENERATOR: context, **context.pools}.items():
            own = tables.of_pool(name) if context.pools else tables
            broken += _tokens(own, pool)
            if full and not broken:
                broken += [*_steps(own, pool), *_totals(own), *_idling(own, pool), *_little(own, pool)]
    return broken


def _report(wrong: NDArray[np.bool_], ids: IntArray, text: str) -> Iterator[str]:
    """One line for a law that some rows break, naming the first of them."""
    count = int(wrong.sum())
    if count:
        yield f"{text}: {count} broken, first {int(ids[np.argmax(wrong)])}"


def _identities(tables: Tables) -> Iterator[str]:
    """Ids are unique, states are known, every request has its query and every query its requests."""
    queries, requests = tables.queries, tables.requests
    for table, name, states in ((queries, "query_id", QUERY_STATES), (requests, "request_id", REQUEST_STATES)):
        ids = column(table, name)
        yield from _report(np.diff(ids, prepend=ids[:1] - 1) <= 0, ids, f"{name} increases from row to row")
        yield from _report(~is_in(table, "status", *states), ids, f"status is one of {', '.join(states)} ({name})")
    ids, owners = column(queries, "query_id"), column(requests, "query_id")
    orphans = ~np.isin(owners, ids)
    yield from _report(orphans, column(requests, "request_id"), "a request belongs to a query")
    if orphans.any() or not ids.size:
        return
    rows = query_rows(queries, requests)
    spawned = np.bincount(rows, minlength=ids.size)
    yield from _report(spawned != column(queries, "requests"), ids, "a query's requests are in the request table")
    output = np.bincount(rows, weights=column(requests, "output_tokens"), minlength=ids.size)
    yield from _report(output != column(queries, "output_tokens"), ids, "a query's output tokens are its requests'")


def _stamps(tables: Tables) -> Iterator[str]:
    """arrival <= queued <= scheduled <= first token <= finish <= end of the run, as far as each happened."""
    requests, queries, end = tables.requests, tables.queries, tables.end_ns
    ids = column(requests, "request_id")
    latest = column(requests, "arrival_ns")
    yield from _report(latest < 0, ids, "a request's arrival is not negative")
    for name in ("queued_ns", "scheduled_ns", "first_token_ns", "finish_ns"):
        stamp = column(requests, name)
        happened = stamp >= 0
        yield from _report(happened & (stamp < latest), ids, f"a request's {name} is not before its earlier stamps")
        latest = np.where(happened, stamp, latest)
    yield from _report(latest > end, ids, "a request's last stamp is not after the end of the run")
    finished = is_in(requests, "status", "finished")
    unscheduled = finished & (column(requests, "scheduled_ns") < 0)
    yield from _report(unscheduled, ids, "a finished request was scheduled")
    closed = is_in(requests, "status", "finished", "cancelled")
    open_end = closed != (column(requests, "finish_ns") >= 0)
    refused = is_in(requests, "status", "refused")
    yield from _report(open_end & ~refused, ids, "a request has a finish exactly when it ended")
    silent = (column(requests, "output_tokens") > 0) != (column(requests, "first_token_ns") >= 0)
    yield from _report(silent, ids, "a request has a first token exactly when it has output")

    query_ids, finish = column(queries, "query_id"), column(queries, "finish_ns")
    answered = is_in(queries, "status", "finished")
    yield from _report(answered & (finish < 0), query_ids, "a finished query has a finish")
    yield from _report((finish >= 0) & (finish < column(queries, "arrival_ns")), query_ids, "arrival before finish")
    yield from _report(finish > end, query_ids, "a query's finish is not after the end of the run")
    if not query_ids.size:
        return
    rows = query_rows(queries, requests)
    early = column(requests, "arrival_ns") < column(queries, "arrival_ns")[rows]
    yield from _report(early, ids, "a request does not arrive before its query")
    never = np.iinfo(np.int64).max
    token = column(requests, "first_token_ns")
    first = np.full(query_ids.size, never)
    np.minimum.at(first, rows[token >= 0], token[token >= 0])
    first = np.where(first == never, -1, first)
    yield from _report(
        first != column(queries, "first_token_ns"), query_ids, "a query's first token is its requests' first"
    )


def _tokens(tables: Tables, context: RunContext) -> Iterator[str]:
    """Tokens computed against tokens known, request by request."""
    requests = tables.requests
    ids, output = column(requests, "request_id"), column(requests, "output_tokens")
    prompt, cached = column(requests, "prompt_tokens"), column(requests, "cached_tokens")
    computed, again = column(requests, "computed_tokens"), column(requests, "recomputed_tokens")
    overshoot, preemptions = column(requests, "overshoot_tokens"), column(requests, "preemptions")
    finished = is_in(requests, "status", "finished")
    stopped = is_in(requests, "finish_reason", "stop")
    yield from _report(output > column(requests, "max_tokens"), ids, "output tokens stay within max_tokens")
    yield from _report((cached < 0) | (cached >= np.maximum(prompt, 1)), ids, "cached tokens are less than the prompt")
    yield from _report((again < 0) | (again > computed), ids, "recomputed tokens are part of the computed ones")
    yield from _report((again > 0) & (preemptions == 0), ids, "only preempted requests recompute")
    # Asynchronous scheduling learns of a stop only after the next step is queued; drafts may be right beyond a stop.
    most = context.num_speculative_tokens
    bound = np.where((stopped | (most > 0)) & context.async_scheduling, 1 + most, 0) + most
    late = (overshoot < 0) | (overshoot > bound)
    text = "only a stop under asynchronous scheduling overshoots, by one token and the drafts of its step"
    yield from _report(late & finished, ids, text)
    drafts, accepted = column(requests, "draft_tokens"), column(requests, "accepted_tokens")
    rejected = column(requests, "rejected_tokens")
    wrong = (accepted < 0) | (accepted > drafts) | (rejected < drafts - accepted) | (rejected > drafts)
    yield from _report(wrong, ids, "drafts are accepted or rejected, those of a preempted request both")
    # The last token of an output is never computed.
    needed = prompt - cached + np.maximum(output - 1, 0) + again + rejected + overshoot
    text = "computed tokens = prompt - cached + output - 1 + recomputed + rejected drafts + overshoot"
    yield from _report(finished & (computed != needed), ids, text)


def _steps(tables: Tables, context: RunContext) -> Iterator[str]:
    """Steps of a replica do not overlap and stay within the engine's limits."""
    runs = StepRuns.of(tables.steps)
    rows = np.arange(runs.start.size)
    last = runs.n - 1
    shape_ok = (runs.n >= 1) & (runs.duration >= 1) & (runs.duration + last * runs.increment >= 1)
    yield from _report(~shape_ok, rows, "a step run has steps and they take time (row)")
    before_last = np.maximum(last - 1, 0)
    inside = (last == 0) | (
        (runs.period >= runs.duration)
        & (runs.period + before_last * runs.period_increment >= runs.duration + before_last * runs.increment)
    )
    yield from _report(~inside, rows, "steps of one run do not overlap (row)")
    yield from _report(runs.end() > runs.next_start, rows, "runs of one replica do not overlap (row)")
    if rows.size > 1:
        codes = replica_codes(tables.steps)
        unordered = (codes[1:] == codes[:-1]) & (np.diff(runs.start) <= 0)
        yield from _report(unordered, rows[1:], "steps are sorted by replica and time (row)")
    starts = points(runs.start, runs.period, runs.period_increment, last)
    yield from _report(starts > tables.end_ns, rows, "steps start before the end of the run (row)")

    decode, prefill = runs.column("decode_seqs"), runs.column("prefill_seqs")
    tokens, drafts = runs.column("prefill_tokens"), runs.column("draft_tokens")
    held, cached = runs.column("held_blocks"), runs.column("cached_blocks")
    limits = (
        (decode + prefill > runs.column("running"), "sequences in a step are running"),
        (decode + prefill < 1, "a step computes at least one sequence"),
        (tokens < prefill, "every prefilling sequence computes a token"),
        (runs.column("running") > context.max_num_seqs, "running sequences stay within max_num_seqs"),
        (
            decode + drafts + tokens > context.max_num_batched_tokens,
            "tokens of a step stay within max_num_batched_tokens",
        ),
        ((held < 0) | (cached < 0) | (held + cached > context.usable_blocks), "held + cached blocks fit the pool"),
        (held < runs.column("running").clip(max=1), "running sequences hold blocks"),
        (runs.column("waiting") < 0, "waiting is not negative"),
    )
    for wrong, text in limits:
        yield from _report(wrong, rows, f"{text} (row)")


def _totals(tables: Tables) -> Iterator[str]:
    """What the steps computed and delivered is what the requests received."""
    runs = StepRuns.of(tables.steps)
    per_step = runs.column("decode_seqs") + runs.column("draft_tokens") + runs.column("prefill_tokens")
    step_tokens = exact_sum(runs.n * per_step)
    computed = exact_sum(column(tables.requests, "computed_tokens"))
    if step_tokens != computed:
        yield f"tokens computed by the steps are the requests': {step_tokens} in steps, {computed} in requests"
    per_delivery = column(tables.token_gaps, "seqs") + column(tables.token_gaps, "extra_tokens")
    delivered = exact_sum(column(tables.token_gaps, "steps") * per_delivery)
    later = exact_sum(np.maximum(column(tables.requests, "output_tokens") - 1, 0))
    if delivered != later:
        yield f"deliveries bring the output tokens behind the first ones: {delivered} delivered, {later} tokens"
    drafted = exact_sum(column(tables.drafts, "drafted"))
    drafts = exact_sum(column(tables.requests, "draft_tokens"))
    if drafted != drafts:
        yield f"drafts by position are the requests': {drafted} by position, {drafts} in requests"
    outside = int((~flags(tables.steps, "in_domain")).sum())
    if outside > runs.start.size:
        yield "steps outside the domain are steps"


def _idling(tables: Tables, context: RunContext) -> Iterator[str]:
    """No replica is idle for longer than the host needs while a request is in its engine."""
    bound = context.host_gap_bound_ns
    if bound is None or not tables.steps.num_rows:
        return
    runs = StepRuns.of(tables.steps)
    codes, owners = replica_codes(tables.steps), _request_codes(tables)
    requests = tables.requests
    ended = column(requests, "finish_ns")
    queued = column(requests, "queued_ns")
    end = runs.end()
    for code in np.unique(codes):
        mine, here = codes == code, (owners == code) & (queued >= 0)
        gap_start, gap_end = end[mine][:-1], runs.start[mine][1:]
        idle = gap_end - gap_start > bound
        gap_start, gap_end = gap_start[idle], gap_end[idle]
        came = np.searchsorted(np.sort(queued[here]), gap_start, side="right")
        gone = np.searchsorted(np.sort(ended[here & (ended >= 0)]), gap_end, side="left")
        yield from _report(came > gone, gap_start, "no replica idles while a request is in its engine (at ns)")


def _request_codes(tables: Tables) -> IntArray:
    """`replica_codes` of the requests, in the steps table's numbering of pools; -1 for pools without steps."""
    step_pools = tables.steps.column("pool").combine_chunks().dictionary_encode().dictionary.to_pylist()
    pools = tables.requests.column("pool").combine_chunks().dictionary_encode()
    number = {pool: index for index, pool in enumerate(step_pools)}
    known = np.array([number.get(pool, -1) for pool in pools.dictionary.to_pylist()], dtype=np.int64)
    code = known[pools.indices.to_numpy()] if known.size else np.zeros(0, dtype=np.int64)
    return np.where(code < 0, -1, code * 1_000_000 + column(tables.requests, "replica"))


def _little(tables: Tables, context: RunContext) -> Iterator[str]:
    """Little's law on requests, to the nanosecond where steps abut.

    The time integral of running + waiting equals the sum of the requests' stays in the engine. Exact only with
    synchronous scheduling, no host overhead and nothing cancelled; not asked otherwise.
    """
    requests = tables.requests
    exact = not context.async_scheduling and context.host_gap_bound_ns == 0
    if not exact or not is_in(requests, "status", "finished", "refused").all():
        return
    runs = StepRuns.of(tables.steps)
    present = runs.column("running") + runs.column("waiting")
    spans = points(np.zeros_like(runs.start), runs.period, runs.period_increment, runs.n)
    area = exact_sum(spans * present)
    entered = column(requests, "queued_ns") >= 0
    stay = exact_sum((column(requests, "finish_ns") - column(requests, "queued_ns"))[entered])
    if area != stay:
        yield f"Little's law on requests: {area} request-ns in the steps, {stay} in the requests"
