"""The KV cache made of runs of blocks is the same as one with an object for each block, operation by operation.

A random player holds requests as a scheduler would: prompts of several owners (shared prefix, question, a parent's
output), siblings, children, chunks, decoding block by block and in leaps, preemption and resumption, in caches of a few
blocks.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from block_oracle import BlockKVCache, Name

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.kv_cache import Extent, KVCacheManager, Piece
from ttsim_des.engine.request import Request

WORLDS = 2_000
OPERATIONS = 60


class Watched(KVCacheManager):
    """The product's cache, counting what happens to its runs."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.counts: Counter[str] = Counter()

    def _split(self, extent: Extent, at: int) -> Extent:
        self.counts["splits of free runs" if not extent.refs else "splits of held runs"] += 1
        return super()._split(extent, at)

    def register(self, request: Request, num_tokens: int) -> None:
        named, runs = request.num_registered_blocks, len(request.holdings)
        super().register(request, num_tokens)
        self.counts["runs grown"] += request.num_registered_blocks > named and len(request.holdings) == runs

    def free_names(self) -> list[Name | None]:
        """The free queue from its head, block by block."""
        names: list[Name | None] = []
        extent = self._queue.after
        while extent is not self._queue:
            assert extent.after.before is extent
            assert not extent.refs
            assert len(extent) > 0
            if extent.owner is None:
                names += [None] * len(extent)
            else:
                names += [Name(extent.owner, index) for index in reversed(range(extent.low, extent.high))]
            extent = extent.after
        queued = min(self._num_queued, self.num_free_blocks)
        taken = len(names) - queued
        self.counts["takings put off"] += taken > 0
        return [None] * (self.num_free_blocks - queued) + names[taken:]


class Player:
    """Plays the same random operations on both caches and compares them after each."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.size = random.choice([1, 2, 3, 4, 4, 8])
        config = EngineConfig(
            num_gpu_blocks=1 + random.choice([3, 6, 10, 16, 30]),
            block_size=self.size,
            enable_prefix_caching=random.random() < 0.95,
            free_unhashed_first=random.random() < 0.5,
        )
        self.runs, self.blocks = Watched(config), BlockKVCache(config)
        self.longest = config.num_gpu_blocks * self.size
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.finished: list[Request] = []
        self.num_requests = self.next_owner = 1
        self.questions: list[tuple[tuple[int, int], ...]] = []
        self.counts: Counter[str] = Counter()

    def play(self, operations: int) -> Counter[str]:
        moves = [self.arrive, self.admit, self.admit, self.chunk, self.decode, self.leap, self.preempt, self.finish]
        for _ in range(operations):
            self.random.choice(moves)()
            self.compare()
        while self.running:
            self.end(self.random.choice(self.running))
            self.compare()
        assert self.runs.num_free_blocks == self.runs.num_usable_blocks
        return self.counts + self.runs.counts + self.blocks.counts

    def compare(self) -> None:
        assert self.runs.num_free_blocks == self.blocks.num_free_blocks
        assert self.runs.num_cached_free_blocks() == self.blocks.num_cached_free_blocks
        assert self.runs.free_names() == self.blocks.free_names()
        for request in self.running:
            assert request.num_blocks == len(self.blocks.held[request.request_id])
            if self.blocks.caching:
                assert request.num_registered_blocks == self.blocks.num_registered[request.request_id]

    # ---- moves ----

    def arrive(self) -> None:
        prompt = self.make_prompt()
        request = Request(self.num_requests, prompt[-1][1], 1_000, prompt, arrival_ns=0)
        self.num_requests += 1
        self.waiting.append(request)

    def make_prompt(self) -> tuple[tuple[int, int], ...]:
        random, kind = self.random, self.random.random()
        if self.finished and kind < 0.3:
            parent = random.choice(self.finished)
            prompt = (*parent.prompt, (parent.output_owner, parent.num_tokens))
            if random.random() < 0.5:
                prompt = (*prompt, (self.new_owner(), parent.num_tokens + self.length()))
            self.counts["children"] += 1
            return prompt
        if self.questions and kind < 0.75:
            self.counts["siblings"] += 1
            return random.choice(self.questions)
        shared = (random.choice([1, 2, 3]) * self.size - random.choice([0, 0, 1])) if random.random() < 0.5 else 0
        own = (self.new_owner(), shared + self.length())
        prompt = ((0, shared), own) if shared else (own,)
        self.counts["prompts of whole blocks"] += own[1] % self.size == 0
        self.questions.append(prompt)
        return prompt

    def new_owner(self) -> int:
        self.next_owner += 1
        return self.next_owner

    def length(self) -> int:
        blocks = self.random.choice([1, 1, 2, 3])
        return max(1, blocks * self.size - self.random.choice([0, 0, 1, self.size // 2]))

    def admit(self) -> None:
        if not self.waiting:
            return
        request = self.random.choice([self.waiting[0], self.random.choice(self.waiting)])
        pieces, hits = self.runs.find_prefix(request), self.blocks.find_prefix(request)
        assert spelled_out(pieces) == [self.blocks.name[block] for block in hits]
        assert [extent.refs for extent, low, high in pieces for _ in range(low, high)] == [
            self.blocks.refs[block] for block in hits
        ]
        cached = len(hits) * self.size
        chunk = self.random.choice([request.num_tokens - cached, self.random.randint(1, request.num_tokens - cached)])
        must_fit, spare = self.random.choice([request.num_tokens, cached + chunk]), self.random.choice([0, 0, 1])
        fits = self.runs.can_admit(pieces, must_fit, spare)
        assert fits == self.blocks.can_admit(hits, must_fit, spare)
        if not fits:
            self.counts["refusals"] += 1
            return
        self.counts["resumptions with hits"] += bool(hits) and request.preemptions > 0
        self.waiting.remove(request)
        self.running.append(request)
        self.runs.admit(request, pieces)
        self.blocks.admit(request, hits)
        self.compare()
        request.num_computed_tokens = cached
        self.compute(request, chunk)

    def compute(self, request: Request, num_tokens: int) -> None:
        request.num_computed_tokens += num_tokens
        for cache in (self.runs, self.blocks):
            cache.allocate(request, request.num_computed_tokens)
            cache.register(request, min(request.num_computed_tokens, request.num_tokens))

    def chunk(self) -> None:
        for request in self.running:
            left = request.num_tokens - request.num_computed_tokens
            if left:
                num_tokens = self.random.randint(1, left)
                if self.make_room(request, num_tokens):
                    self.compute(request, num_tokens)
                return

    def decode(self) -> None:
        """One more output token for everybody who has computed all there is."""
        for request in list(self.running):
            if request in self.running and request.num_computed_tokens == request.num_tokens < self.longest:
                request.num_output_tokens += 1
                if self.make_room(request, 1):
                    self.compute(request, 1)
                    self.compare()

    def leap(self) -> None:
        """Several tokens each at once: the product takes all blocks first, counts and names them afterwards."""
        steps = self.random.randint(1, 3 * self.size)
        decoding = [request for request in self.running if request.num_computed_tokens == request.num_tokens]
        missing = [self.runs.num_missing_blocks(request, request.num_tokens + steps) for request in decoding]
        if not decoding or sum(missing) > self.runs.num_free_blocks:
            return
        if sum(missing):
            self.runs.take(sum(missing))
        for request, blocks in zip(decoding, missing, strict=True):
            assert blocks == self.blocks.num_missing_blocks(request, request.num_tokens + steps)
            request.num_output_tokens += steps
            request.num_computed_tokens += steps
            request.num_blocks += blocks
            self.blocks.allocate(request, request.num_computed_tokens)
        named = self.random.choice([0, 1])  # asynchronous scheduling knows a token less
        for request in self.random.sample(decoding, self.random.randint(0, len(decoding))):  # others when they end
            for cache in (self.runs, self.blocks):
                cache.register(request, request.num_tokens - named)

    def make_room(self, request: Request, num_tokens: int) -> bool:
        missing = self.runs.num_missing_blocks(request, request.num_computed_tokens + num_tokens)
        assert missing == self.blocks.num_missing_blocks(request, request.num_computed_tokens + num_tokens)
        while missing > self.runs.num_free_blocks:
            victim = self.running[-1]
            self.put_back(victim)
            self.compare()
            if victim is request:
                return False
        return True

    def preempt(self) -> None:
        if self.running and self.random.random() < 0.4:
            self.put_back(self.random.choice(self.running))

    def put_back(self, request: Request) -> None:
        self.drop(request)
        request.num_computed_tokens = 0
        request.preemptions += 1
        self.waiting.insert(0, request)
        self.counts["preemptions"] += 1

    def finish(self) -> None:
        if self.running and self.random.random() < 0.6:
            self.end(self.random.choice(self.running))

    def end(self, request: Request) -> None:
        """The product names and frees the blocks of a request that ends in one go."""
        self.running.remove(request)
        named = min(request.num_computed_tokens, request.num_tokens)
        self.counts["named as they are freed"] += named // self.size > request.num_registered_blocks
        self.runs.retire(request, named)
        self.blocks.register(request, named)
        self.blocks.free(request)
        self.finished.append(request)

    def drop(self, request: Request) -> None:
        self.running.remove(request)
        self.runs.free(request)
        self.blocks.free(request)


class NewestCopy(Watched):
    """Hands out the copy registered last."""

    def find_prefix(self, request: Request) -> list[Piece]:
        for copies in self._extents.values():
            copies.reverse()
        hits = super().find_prefix(request)
        for copies in self._extents.values():
            copies.reverse()
        return hits


class HeadFirst(Watched):
    """Puts freed named blocks where they are evicted first."""

    def free(self, request: Request) -> None:
        before = self._queue.before
        super().free(request)
        if before is not self._queue and before.after is not self._queue:
            last = self._queue.before
            last.before.after, last.after.before = last.after, last.before
            self._link_before(self._queue.after, last)


class RevivedForFree(Watched):
    """Forgets that hits in the free queue leave it."""

    def can_admit(self, hits: list[Piece], num_tokens: int, spare_blocks: int) -> bool:
        held = sum(high - low for _, low, high in hits)
        return self.num_blocks(num_tokens) - held + spare_blocks <= self.num_free_blocks


class NamesTooLate(Watched):
    """Names one block less than is full."""

    def register(self, request: Request, num_tokens: int) -> None:
        super().register(request, num_tokens - 1)


@pytest.mark.parametrize("wrong", [NewestCopy, HeadFirst, RevivedForFree, NamesTooLate])
def test_a_wrong_cache_is_caught(wrong: type[Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_kv_cache.Watched", wrong)
    with pytest.raises(AssertionError):
        play_worlds(50)


def spelled_out(pieces: list[Piece]) -> list[Name | None]:
    return [Name(extent.owner, index) for extent, low, high in pieces for index in range(low, high)]


def play_worlds(number: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in range(number):
        try:
            total += Player(seed).play(OPERATIONS)
        except Exception as error:
            raise AssertionError(f"the caches part in world {seed}") from error
    return total


@pytest.fixture(scope="module")
def counts() -> Counter[str]:
    return play_worlds(WORLDS)


def test_runs_of_blocks_equal_blocks(counts: Counter[str]) -> None:
    assert sum(counts.values()) > WORLDS


@pytest.mark.parametrize(
    "case",
    [
        "duplicates",
        "hits on one of several copies",
        "evictions",
        "evictions of one of several copies",
        "chains cut in the middle",
        "splits of free runs",
        "splits of held runs",
        "runs grown",
        "takings put off",
        "free blocks revived",
        "held blocks shared",
        "prompts of whole blocks",
        "resumptions with hits",
        "children",
        "siblings",
        "refusals",
        "preemptions",
        "named as they are freed",
    ],
)
def test_the_hard_cases_did_happen(counts: Counter[str], case: str) -> None:
    assert counts[case] >= 200, counts
