"""A naive simulator of the same worlds: one engine iteration at a time, every quantity recomputed from scratch.

It takes nothing from the product but a step model's `step_ns` and `in_domain` (given to it) and the shape that these
are asked about. Text is real text here (lists of tokens), a block is an object, the free queue is a list. What a world
is: worlds.py. The rules are vLLM V1's, as docs/engine.md has them.
"""

from __future__ import annotations

import heapq
from collections import Counter, namedtuple
from typing import NamedTuple

from ttsim_des.latency.shape import PrefillChunk, StepShape

STEP_END, NOTICE, REACTION, ARRIVAL, SCHEDULE = range(5)
"""Order at one instant; NOTICE is a client learning of a result that a step's end brought, by replica."""

Entry = namedtuple("Entry", "request new before samples epoch drafts is_padded")
Step = namedtuple("Step", "entries end")
Join = namedtuple("Join", "samples count")
Reach = namedtuple("Reach", "sample tokens")


MOST_STEPS = 10_000


class Endless(Exception):  # noqa: N818
    """A world that never ends: nobody fits, or requests preempt each other for ever (as they would in vLLM)."""


class Block:
    def __init__(self):
        self.name = None  # of the text from the start of the sequence to the block's end
        self.holders = 0


class Verdict(NamedTuple):
    """What a sample is worth."""

    answer: int
    score: float


class Request:
    """Engine's and client's view in one; only the engine looks at `stop`, and only when a token comes back."""

    def __init__(self, number, query, index, text, cap, stop, parent):
        self.number, self.query, self.index, self.parent = number, query, index, parent
        self.text, self.prompt_tokens = list(text), len(text)
        self.max_tokens, self.stop, self.priority = cap, stop, 0
        self.name = f"{index}_{query.number}"
        self.tell_at = ()
        self.replica = -1
        self.status = "waiting"
        self.is_in_engine = False
        self.computed = 0
        self.blocks = []
        self.preemptions = 0
        self.arrival = self.queued = self.scheduled = self.first_token = self.last_token = self.finish = -1
        self.enters = -1
        self.reason = ""
        self.touched = set()  # positions computed or hit so far, wrong drafts aside
        self.certain = set()  # of these, what it had before its last preemption
        self.drafts, self.mid_prefill = 0, False  # drafts that wait to be verified
        self.accepts, self.proposes = [], None  # by number of outputs known
        self.draft_steps = self.draft_tokens = self.accepted_tokens = self.rejected_tokens = 0
        self.hit_tokens = self.computed_tokens = self.recomputed = self.overshoot = 0

    @property
    def outputs(self):
        return len(self.text) - self.prompt_tokens

    # What strategies read of a request, by the product's names.

    @property
    def finish_reason(self):
        return self.reason

    @property
    def num_output_tokens(self):
        return self.outputs


class Cache:
    def __init__(self, config, counts):
        self.size, self.caching = config["block_size"], config["enable_prefix_caching"]
        self.unnamed_first = config["free_unhashed_first"]
        self.free = [Block() for _ in range(config["num_gpu_blocks"] - 1)]
        self.total = len(self.free)
        self.named = {}  # name -> blocks, in order of registration
        self.texts = {}  # (name of the text before, a block's tokens) -> name
        self.counts = counts

    def names(self, request, tokens):
        """The names of the full blocks of the first `tokens` tokens: each stands for the whole text so far."""
        name = None
        for start in range(0, tokens - tokens % self.size, self.size):
            text = (name, *request.text[start : start + self.size])
            name = self.texts.setdefault(text, len(self.texts))
            yield name

    def hits(self, request):
        found = []
        if self.caching:
            for name in self.names(request, len(request.text) - 1):
                if not self.named.get(name):
                    break
                found.append(self.named[name][0])
        return found

    def blocks_for(self, tokens):
        return -(-tokens // self.size)

    def hold(self, request, blocks):
        for block in blocks:
            if block.holders == 0:
                self.free.remove(block)
                self.counts["hits on freed blocks"] += 1
            block.holders += 1
            request.blocks.append(block)

    def grow(self, request, tokens):
        while len(request.blocks) < self.blocks_for(tokens):
            block = self.free.pop(0)
            if block.name is not None:
                self.named[block.name].remove(block)
                block.name = None
                self.counts["cached blocks evicted"] += 1
            block.holders = 1
            request.blocks.append(block)

    def register(self, request, tokens):
        if self.caching and any(block.name is None for block in request.blocks[: tokens // self.size]):
            for block, name in zip(request.blocks, self.names(request, tokens), strict=False):
                if block.name is None:
                    block.name = name
                    copies = self.named.setdefault(name, [])
                    self.counts["duplicate blocks"] += bool(copies)
                    copies.append(block)

    def release(self, request):
        for block in reversed(request.blocks):
            block.holders -= 1
            if block.holders == 0:
                at_front = block.name is None and self.unnamed_first
                self.free.insert(0 if at_front else len(self.free), block)
        request.blocks = []


class Engine:
    """One replica: `loop` is its whole life; it yields (time, phase) to sleep until then, None to sleep until input."""

    def __init__(self, world, index, sim):
        self.config, self.host = world["engine"], world["host"]
        self.index, self.sim, self.counts = index, sim, sim.counts
        self.cache = Cache(self.config, sim.counts)
        self.depth = 2 if self.config["async_scheduling"] else 1
        self.spec = self.config.get("speculation")
        self.slots = self.spec["draft_slots"] if self.spec else 0
        self.draft_counts = Counter()
        self.running, self.waiting, self.queue, self.inbox = [], [], [], []
        self.someone_ended = False
        self.device_free = 0
        self.step_rows, self.gaps, self.extra = [], Counter(), Counter()
        self.last_shape = None
        self.asleep = True
        self.life = self.loop()
        next(self.life)

    def receive(self, request, is_cancel):
        now = self.sim.now
        self.counts["inputs at the instant of a step's end"] += any(step.end == now for step in self.queue)
        self.counts["inputs while only decoding"] += self.last_shape is not None and bool(self.queue)
        if is_cancel:
            self.counts["cancels that came too late"] += request.status in ("finished", "cancelled")
        self.inbox.append((now, request, is_cancel))
        if self.asleep:
            self.asleep = False
            self.sim.at(now, SCHEDULE, self.index, self.wake)

    def wake(self):
        asked = next(self.life)
        if asked is None:
            self.asleep = True
        else:
            self.sim.at(*asked, self.index, self.wake)

    def loop(self):
        yield None
        while True:
            self.drain()
            now = self.sim.now
            if self.running or self.waiting or self.someone_ended:
                entries, preempted = self.schedule()
                while preempted and not entries and self.depth == 1:
                    entries, preempted = self.schedule()
                if entries:
                    now += self.host[0] + self.host[1] * len(entries)
                    self.launch(entries, preempted, now)
                    if len(self.queue) < self.depth:
                        yield now, SCHEDULE
                        continue
                elif self.depth == 2:
                    self.queue.append(Step([], 0))
                    self.counts["empty steps"] += 1
                is_stuck = not entries and not preempted and self.waiting and not self.running
                if is_stuck and not any(step.entries for step in self.queue):
                    raise Endless
            if not self.queue:
                yield None
                continue
            self.counts["steps bound by the host"] += self.queue[0].end < now and bool(self.queue[0].entries)
            yield max(now, self.queue[0].end), STEP_END
            self.act_on_cancels()
            step = self.queue.pop(0)
            told = self.sim.now + self.host[2] + self.host[3] * len(step.entries)
            self.update(step.entries, told)
            yield told, SCHEDULE

    # ---- inputs ----

    def drain(self):
        for _, request, is_cancel in self.inbox:
            if not is_cancel:
                request.queued = self.sim.now
                request.is_in_engine = True
                self.waiting.append(request)
            elif request.is_in_engine:
                self.counts["cancels between steps"] += 1
                self.end(request, "cancelled")
        self.inbox = []

    def act_on_cancels(self):
        for time, request, is_cancel in self.inbox:
            if is_cancel and time < self.sim.now and request.is_in_engine:
                self.counts["cancels at a step's end"] += 1
                self.counts["cancels with work queued"] += any(
                    entry.request is request for step in self.queue[1:] for entry in step.entries
                )
                self.end(request, "cancelled")

    def end(self, request, status):
        self.counts[f"{status} while waiting"] += request in self.waiting
        (self.running if request in self.running else self.waiting).remove(request)
        self.cache.release(request)
        request.status, request.finish, request.is_in_engine = status, self.sim.now, False
        self.someone_ended = True

    # ---- schedule ----

    def in_flight(self, request):
        """Tokens that are on their way to this request."""
        if not request.max_tokens:
            return 0
        return sum(
            1 + entry.drafts
            for step in self.queue
            for entry in step.entries
            if entry.request is request and entry.samples and entry.epoch == request.preemptions
        )

    def blocks_up_to(self, tokens):
        """Blocks for a step that reaches so far, the drafter's look-ahead included."""
        if self.spec:
            tokens = min(tokens + self.spec["num_lookahead_tokens"], max(tokens, self.config["max_model_len"]))
        return self.cache.blocks_for(tokens)

    def drafts_after(self, sequences):
        """Drafts for each sequence behind a step of so many."""
        if not self.spec["by_batch_size"]:
            return self.spec["num_speculative_tokens"]
        fitting = [drafts for most, drafts in self.spec["by_batch_size"] if sequences <= most]
        return fitting[0] if fitting else self.spec["by_batch_size"][-1][1]

    def schedule(self):
        config, cache = self.config, self.cache
        self.someone_ended = False
        entries, preempted = [], []
        budget, threshold = config["max_num_batched_tokens"], config["long_prefill_token_threshold"]
        room, goes_on = budget, False  # of the input: drafting takes slots of it too
        if len(self.running) + len(self.waiting) == 1:
            threshold = 0
        place = 0
        while place < len(self.running) and budget and room > self.slots:
            request = self.running[place]
            coming = self.in_flight(request)
            if coming and request.computed + 2 - coming >= request.prompt_tokens + request.max_tokens:
                place += 1  # its last token is in flight
                continue
            new = len(request.text) + request.drafts + coming - request.computed
            self.counts["drafts cut by max_model_len"] += 0 < config["max_model_len"] - 1 - request.computed < new
            self.counts["drafts cut by the budget"] += request.drafts > 0 and new > room - self.slots
            new = min(new, threshold or new, budget, room - self.slots, config["max_model_len"] - 1 - request.computed)
            if new == 0:
                place += 1
                continue
            while self.blocks_up_to(request.computed + new) - len(request.blocks) > len(cache.free):
                victim = self.victim()
                preempted.append(victim)
                self.counts["preemptions"] += 1
                self.counts["preemptions of oneself"] += victim is request
                for entry in entries:
                    if entry.request is victim:  # its tokens go back; blocks that it named keep their names
                        self.counts["victims scheduled in the same step"] += 1
                        victim.computed = entry.before
                        budget += entry.new
                        room += entry.new + self.slots
                        place -= 1
                entries = [entry for entry in entries if entry.request is not victim]
                self.preempt(victim)
                if victim is request:
                    break
            if request in preempted:
                break
            goes_on |= request.mid_prefill
            entries.append(self.compute(request, new))
            budget -= new
            room -= new + self.slots
            place += 1
        if not preempted:
            self.admit(entries, budget, room, threshold, goes_on)
        else:
            self.counts["steps that preempt and leave somebody waiting beside"] += len(self.waiting) > len(preempted)
        self.count_positions(entries)
        return entries, preempted

    def victim(self):
        if self.config["scheduling_policy"] == "fcfs":
            return self.running[-1]
        worst = self.running[0]
        for request in self.running:
            if (request.priority, request.arrival) > (worst.priority, worst.arrival):
                worst = request
        return worst

    def preempt(self, victim):
        self.running.remove(victim)
        self.cache.release(victim)
        unverified = max(0, self.in_flight(victim) - 1)
        victim.certain |= {place for place in victim.touched if place < victim.computed - unverified}
        victim.touched = set(victim.certain)
        victim.drafts = 0
        victim.computed = 0
        victim.preemptions += 1
        self.waiting.insert(0, victim)

    def next_waiting(self):
        if self.config["scheduling_policy"] == "fcfs":
            return self.waiting[0]
        return min(self.waiting, key=lambda request: (request.priority, request.arrival, request.name))

    def padding(self, cached, beside, goes_on):
        """Invalid drafts for a request with one token to compute, so that all sequences of the step look alike."""
        if not self.spec or self.spec["by_batch_size"] or goes_on or not (beside or cached):
            return 0
        drafts = self.spec["num_speculative_tokens"]
        return drafts if cached + 1 + drafts + 1 <= self.config["max_model_len"] else 0

    def admit(self, entries, budget, input_room, threshold, goes_on):
        config, cache = self.config, self.cache
        beside = len(entries)
        while self.waiting and budget and input_room > self.slots and len(self.running) < config["max_num_seqs"]:
            request = self.next_waiting()
            hits = cache.hits(request)
            cached = len(hits) * cache.size
            new = len(request.text) - cached
            left, padding = min(budget, input_room - self.slots), 0
            if new == 1 and request.max_tokens:
                padding = self.padding(cached, beside, goes_on)
                if 1 + padding > left:
                    return
                new += padding
                self.counts["padded admissions"] += padding > 0
            new = min(new, threshold or new)
            padding = min(padding, new - 1)
            if new > left and not config["enable_chunked_prefill"]:
                return
            new = min(new, left)
            in_free_queue = sum(block.holders == 0 for block in hits)
            room = len(cache.free) - in_free_queue
            spare = config["watermark_blocks"] if self.running else 0
            chunk_needs = self.blocks_up_to(cached + new) - len(hits)
            all_needs = cache.blocks_for(len(request.text)) - len(hits)
            needs = max(all_needs, chunk_needs) if config["scheduler_reserve_full_isl"] else chunk_needs
            if needs + spare > room:
                self.counts["refusals for lack of blocks"] += 1
                self.counts["refusals although the chunk fits"] += chunk_needs + spare <= room
                self.counts["refusals by the watermark alone"] += needs <= room
                return
            self.waiting.remove(request)
            self.running.append(request)
            cache.hold(request, hits)
            request.computed = cached
            self.counts["resumed"] += request.preemptions > 0
            self.counts["resumed with hits"] += request.preemptions > 0 and cached > 0
            self.counts["admissions with hits"] += cached > 0
            before = len(request.touched)
            request.touched |= set(range(cached))
            request.hit_tokens += len(request.touched) - before
            self.counts["chunked prompts"] += cached + new < len(request.text)
            entries.append(self.compute(request, new, is_padded=padding > 0))
            budget -= new
            input_room -= new + self.slots

    def compute(self, request, new, is_padded=False):
        before = request.computed
        request.computed += new
        while len(request.blocks) < self.blocks_up_to(request.computed):
            self.cache.grow(request, (len(request.blocks) + 1) * self.cache.size)
        self.cache.register(request, min(request.computed, len(request.text)))
        beyond = request.computed - len(request.text) - self.in_flight(request)
        request.mid_prefill = beyond < 0
        drafts = max(0, beyond) if request.max_tokens else 0
        request.drafts = 0
        return Entry(request, new, before, beyond >= 0, request.preemptions, drafts, is_padded)

    def count_positions(self, entries):
        for entry in entries:
            request = entry.request
            positions = set(range(entry.before, entry.before + entry.new))
            request.computed_tokens += entry.new
            request.recomputed += len(positions & request.touched)
            request.touched |= positions

    # ---- device and results ----

    def launch(self, entries, preempted, ready):
        contexts, chunks, verified = [], [], 0
        for entry in entries:
            is_decode = entry.new - entry.drafts == 1 and entry.before >= entry.request.prompt_tokens
            if is_decode and not entry.is_padded:
                contexts.append(entry.before + entry.new)
                verified += entry.drafts
            else:
                chunks.append(PrefillChunk(entry.new, entry.before))
        rows = sum(entry.samples + entry.drafts for entry in entries)
        proposed = self.drafts_after(len(entries)) if self.spec else 0
        longest = max(contexts, default=0)
        shape = StepShape(len(contexts), sum(contexts), longest, tuple(chunks), rows, verified, proposed)
        if self.depth == 2 and self.spec:
            for entry in entries:
                if entry.samples and entry.request.max_tokens:
                    entry.request.drafts = proposed
        start = max(ready, self.device_free)
        end = self.device_free = start + self.sim.step_ns(shape)
        for entry in entries:
            if entry.request.scheduled < 0:
                entry.request.scheduled = start
        self.queue.append(Step(entries, end))
        free = self.cache.free
        self.step_rows.append(
            (
                start,
                end - start,
                len(contexts),
                len(chunks),
                sum(chunk.new for chunk in chunks),
                verified,
                len(self.running),
                len(self.waiting),
                len(preempted),
                self.cache.total - len(free),
                sum(block.name is not None for block in free),
                self.sim.in_domain(shape),
            )
        )
        self.counts["domain edges while only decoding"] += (
            self.last_shape is not None
            and not chunks
            and self.sim.in_domain(self.last_shape) != self.sim.in_domain(shape)
        )
        self.last_shape = shape if not chunks else None
        self.counts["steps"] += 1
        if self.counts["steps"] > MOST_STEPS:
            raise Endless
        self.counts["tokens"] += sum(entry.new for entry in entries)

    def update(self, entries, told):
        now = self.sim.now
        for request, _, _, samples, epoch, drafts, is_padded in entries:
            if not samples or request.status in ("finished", "cancelled"):
                continue
            is_stale = epoch != request.preemptions
            self.counts["stale tokens delivered"] += is_stale
            if request.max_tokens:
                before = request.outputs
                self.deliver(request, drafts, is_padded, is_stale, len(entries))
                if request.first_token < 0:
                    request.first_token = now
                else:
                    self.gaps[now, now - request.last_token] += 1
                    self.extra[now, now - request.last_token] += request.outputs - before - 1
                request.last_token = now
                if self.depth == 2 and not is_stale:
                    self.cache.register(request, request.computed - self.in_flight(request))
            elif is_stale:
                continue
            if any(before < count <= request.outputs for count in request.tell_at):
                self.counts["milestones"] += 1
                self.sim.at(told, NOTICE, self.index, lambda r=request, n=request.outputs: self.sim.on_tokens(r, n))
            self.end_if_done(request, told)

    def deliver(self, request, drafts, is_padded, is_stale, sequences):
        """One token and the drafts before it that were right; what was wrong is rolled back."""
        known = request.outputs
        right = min(drafts, request.accepts[known]) if drafts and not is_padded else 0
        if drafts:
            request.draft_steps += 1
            request.draft_tokens += drafts
            request.accepted_tokens += right
            request.rejected_tokens += drafts if is_stale else drafts - right
            self.counts["drafts"] += drafts
            self.counts["drafts accepted"] += right
            self.counts["stale drafts"] += is_stale
            for place in range(drafts):
                self.draft_counts["drafted", place + 1] += 1
                self.draft_counts["accepted", place + 1] += place < right
        for _ in range(1 + right):
            is_full = len(request.text) >= self.config["max_model_len"]
            if request.outputs < min(request.stop, request.max_tokens) and not is_full:
                request.text.append((-1 - request.number, request.outputs))
        if not is_stale:
            request.computed -= drafts - right
            request.touched = {place for place in request.touched if place < request.computed} | request.certain
            if self.spec and self.depth == 1:
                asked = self.drafts_after(sequences)
                request.drafts = asked
                if request.proposes is not None and request.outputs < len(request.proposes):
                    request.drafts = min(asked, request.proposes[request.outputs])

    def end_if_done(self, request, told):
        is_stopped = request.outputs >= request.stop
        is_capped = request.outputs >= request.max_tokens
        is_full = len(request.text) >= self.config["max_model_len"]
        if not (is_stopped or is_capped or is_full):
            return
        request.reason = "stop" if is_stopped else "length"
        self.counts["scores"] += request.max_tokens == 0
        self.counts["ended by max_model_len"] += is_full and not is_stopped and not is_capped
        useful = request.prompt_tokens + max(0, request.outputs - 1)
        request.overshoot = max(0, request.computed - useful)
        self.counts["overshoot of more than a token"] += request.overshoot > 1
        self.counts["overshoot tokens"] += request.overshoot
        self.end(request, "finished")
        self.sim.at(told, NOTICE, self.index, lambda: self.sim.on_result(request))


class Query:
    """A client's question and the process that answers it; also the handle that the process holds."""

    def __init__(self, number, prompt, outputs, sim):
        self.number, self.prompt, self.outputs, self.sim = number, prompt, outputs, sim
        self.query_id = number
        self.samples, self.outbox, self.cancels = [], [], []
        self.wait = None
        self.done = []
        self.arrival, self.finish = sim.now, -1
        self.answer = self.straggler = None
        self.strategy, self.max_tokens = sim.settings, sim.world["max_tokens"]
        self.num_lanes = 0

    def spawn(
        self,
        *,
        pool="generator",
        parent=None,
        append_tokens=0,
        tokens=None,
        max_tokens=None,
        verdict=None,
        tell_at=(),
    ):
        number = len(self.sim.requests)
        text = list(self.prompt if parent is None else parent.request.text)
        text += [("appended", number, position) for position in range(append_tokens)]
        if tokens is None:
            tokens, verdict = self.draw()
        cap = self.max_tokens if max_tokens is None else max_tokens
        request = self.sim.make_request(self, text, parent and parent.request, tokens, cap)
        request.tell_at = tuple(sorted(set(tell_at)))
        sample = Sample(request, verdict)
        self.samples.append(sample)
        self.outbox.append(sample)
        return sample

    def score(self, sample, pool, append_tokens=0):
        return self.spawn(parent=sample, append_tokens=append_tokens, tokens=0, max_tokens=0)

    def draw(self):
        lane, asked = self.num_lanes, self.sim.world["queries"][self.number]
        self.num_lanes += 1
        worth = asked.get("worth") if self.sim.world["bundled"] else None
        verdict = Verdict(*worth[lane % len(worth)]) if worth else None
        return self.outputs[lane % len(self.outputs)], verdict

    def uniform(self, name, index):
        return self.sim.uniform(self.number, name, index)

    def cancel(self, samples):
        self.cancels += [sample for sample in samples if not sample.is_done]

    def join(self, samples, count=None):
        return Join(tuple(samples), len(samples) if count is None else count)

    def reach(self, sample, tokens):
        return Reach(sample, tokens)


class Sample:
    def __init__(self, request, verdict):
        self.request, self.verdict = request, verdict
        self.index = request.index
        request.sample = self
        self.done_at = -1  # the client takes it for ended: it has its result, or has given it up
        self.result_at = -1
        self.told_tokens = 0

    @property
    def is_done(self):
        return self.done_at >= 0

    @property
    def answer(self):
        known = self.verdict is not None and self.is_done and self.request.reason == "stop"
        return self.verdict.answer if known else -1

    @property
    def score(self):
        return self.verdict.score if self.answer != -1 else float("-inf")


class Sim:
    """Clients, front ends, router and the event list."""

    def __init__(self, world, model, play, settings=None, uniform=None, luck=None):
        self.world, self.play, self.luck = world, play, luck
        self.settings, self.uniform = settings, uniform
        self.step_ns, self.in_domain = model.step_ns, model.in_domain
        self.counts = Counter()
        self.now, self.events, self.pushed = 0, [], 0
        self.requests, self.queries = [], []
        self.replicas = world["replicas"]
        self.engines = [Engine(world, index, self) for index in range(self.replicas)]
        self.server_free = [0] * self.replicas
        self.turn = 0
        self.not_started = list(enumerate(world["queries"]))

    def at(self, time, phase, key, action):
        self.pushed += 1
        heapq.heappush(self.events, (time, phase, key, self.pushed, action))

    def run(self):
        is_closed = self.world["concurrency"] is not None
        for number, query in enumerate(self.world["queries"][: self.world["concurrency"]]):
            self.start_at(0 if is_closed else query["arrival_ns"], number)
        while self.events:
            self.now, _, _, _, action = heapq.heappop(self.events)
            action()
        assert all(request.finish >= 0 for request in self.requests)
        assert all(len(engine.cache.free) == engine.cache.total for engine in self.engines)

    # ---- clients ----

    def start_at(self, time, number):
        self.not_started = [(other, query) for other, query in self.not_started if other != number]
        self.at(time, REACTION, number, lambda: self.start(number))

    def start(self, number):
        asked = self.world["queries"][number]
        prompt, start = [], 0
        for owner, end in asked["prompt"]:
            prompt += [(owner, position) for position in range(start, end)]
            start = end
        query = Query(number, prompt, asked["outputs"], self)
        query.process = self.play(query)
        self.queries.append(query)
        self.resume(query, None, 0)

    def make_request(self, query, text, parent, stop, cap):
        request = Request(len(self.requests), query, len(query.samples), text, cap, stop, parent)
        if self.world["engine"].get("speculation") and cap:
            request.accepts, request.proposes = self.luck(query.number, request.index)
        self.requests.append(request)
        return request

    def resume(self, query, result, turnaround):
        query.wait = None
        answer, wait = None, None
        try:
            wait = next(query.process) if result is None else query.process.send(result)
        except StopIteration as stop:
            answer, query.finish = stop.value, self.now
        leaves = self.now + turnaround
        for sample in query.outbox:
            sample.request.arrival = leaves
            self.at(leaves, ARRIVAL, sample.request.number, lambda sample=sample: self.send(sample.request))
        for sample in query.cancels:
            self.at(leaves, ARRIVAL, sample.request.number, lambda sample=sample: self.cancel(sample))
        query.outbox, query.cancels = [], []
        if wait is None:
            query.answer = answer
            if self.world["concurrency"] is not None and self.not_started:
                self.start_at(self.now + self.world["turnaround_ns"], self.not_started[0][0])
            return
        query.wait = wait
        self.go_on_if_met(query)

    def go_on_if_met(self, query, trigger=None):
        """Let a query react, at this very instant, once what it waits for has happened."""
        wait = query.wait
        if isinstance(wait, Join):
            result = [sample for sample in query.done if sample in wait.samples]
            is_met = len(result) >= wait.count
            if is_met and trigger is not None:
                query.straggler = trigger
        elif isinstance(wait, Reach):
            result = [wait.sample]
            is_met = wait.sample.is_done or wait.sample.told_tokens >= wait.tokens
        elif wait is not None:
            result = []
            query.wait = None
            self.at(self.now + wait.delay_ns, REACTION, query.number, lambda: self.react(query, result))
            return
        if wait is not None and is_met:
            query.wait = None
            self.at(self.now, REACTION, query.number, lambda: self.react(query, result))

    def react(self, query, result):
        self.resume(query, result, self.world["turnaround_ns"])

    def on_result(self, request):
        request.sample.result_at = self.now
        self.on_end(request)

    def on_end(self, request):
        sample = request.sample
        if not sample.is_done:
            sample.done_at = self.now
            request.query.done.append(sample)
            self.go_on_if_met(request.query, sample)

    def on_tokens(self, request, tokens):
        request.sample.told_tokens = max(request.sample.told_tokens, tokens)
        self.go_on_if_met(request.query)

    # ---- from client to engine ----

    def send(self, request):
        chosen = request.replica = self.route(request.query.number)
        ingest = self.world["host"][4]
        if not ingest:
            request.enters = self.now
            self.engines[chosen].receive(request, is_cancel=False)
            return
        request.enters = self.server_free[chosen] = max(self.now, self.server_free[chosen]) + ingest
        enter = lambda: self.engines[chosen].receive(request, is_cancel=False)  # noqa: E731
        self.at(request.enters, ARRIVAL, request.number, enter)

    def cancel(self, sample):
        request = sample.request
        # Behind the request itself, where that is still entering, at the same instant too.
        if request.enters >= self.now and request.queued < 0:
            self.counts["cancels of what was still entering"] += request.enters > self.now
            forward = lambda: self.engines[request.replica].receive(request, is_cancel=True)  # noqa: E731
            self.at(request.enters, ARRIVAL, request.number, forward)
        else:
            self.engines[request.replica].receive(request, is_cancel=True)
        self.on_end(request)

    def load(self, replica):
        return sum(request.replica == replica and request.finish < 0 for request in self.requests)

    def route(self, query):
        count, loads = self.replicas, [self.load(replica) for replica in range(self.replicas)]
        if count == 1:
            return 0
        least = loads.index(min(loads))
        if self.world["router"] == "least_loaded":
            return least
        if self.world["router"] == "query_affinity":
            home = (hash_of(query) * count) >> 64
            return least if loads[home] > ceil_mean(loads) else home
        self.turn += 1
        return (self.turn - 1) % count

    # ---- what is left ----

    def facts(self):
        """Everything that the product's record tables say, in plain tuples (order as in the tables)."""
        return {
            "queries": [self.query_fact(query) for query in sorted(self.queries, key=lambda query: query.number)],
            "requests": [request_fact(request) for request in self.requests],
            "steps": [(engine.index, *row) for engine in self.engines for row in engine.step_rows],
            "drafts": sorted(
                (engine.index, place, times, engine.draft_counts["accepted", place])
                for engine in self.engines
                for (kind, place), times in engine.draft_counts.items()
                if kind == "drafted"
            ),
            "gaps": sorted(
                (engine.index, *gap, n, engine.extra[gap]) for engine in self.engines for gap, n in engine.gaps.items()
            ),
            "end_ns": self.now,
        }

    def query_fact(self, query):
        requests = [sample.request for sample in query.samples]
        firsts = [request.first_token for request in requests if request.first_token >= 0]
        is_answered = query.finish >= 0
        wasted = sum(
            request.outputs
            for request in requests
            if request.status == "cancelled" or (is_answered and request.sample.result_at > query.finish)
        )
        return (
            query.number,
            query.arrival,
            min(firsts, default=-1),
            query.finish,
            "finished" if is_answered else "open",
            len(requests),
            requests[0].prompt_tokens,
            sum(request.outputs for request in requests),
            wasted,
            query.answer.request.number if query.answer else -1,
            query.straggler.request.number if query.straggler else -1,
        )


def request_fact(request):
    return (
        request.number,
        request.query.number,
        request.index,
        request.parent.number if request.parent else -1,
        request.replica,
        request.priority,
        request.arrival,
        request.queued,
        request.scheduled,
        request.first_token,
        request.finish,
        request.status,
        request.reason,
        request.prompt_tokens,
        request.hit_tokens,
        request.max_tokens,
        request.outputs,
        request.computed_tokens,
        request.recomputed,
        request.overshoot,
        request.preemptions,
        request.draft_steps,
        request.draft_tokens,
        request.accepted_tokens,
        request.rejected_tokens,
    )


def ceil_mean(loads):
    """1.25 x the mean load, rounded up: what a home may have before requests go elsewhere."""
    return -(-5 * sum(loads) // (4 * len(loads)))


def hash_of(number):
    """The finaliser of SplitMix64."""
    mask = (1 << 64) - 1
    z = (number + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def best_of_n(samples, first):
    """A best-of-N client (N = 1: a single sample)."""

    def play(query):
        spawned = [query.spawn() for _ in range(samples)]
        finished = yield query.join(spawned, first)
        query.cancel(spawned)
        return finished[0] if len(finished) == 1 else None

    return play
