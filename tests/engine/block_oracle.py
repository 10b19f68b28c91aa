"""The KV cache with an object for every block: what `engine.kv_cache` must be equal to.

Short and obvious on purpose. It keeps its own books by request id and reads of a request only what describes its text.
`counts` tells which of the cases happened that a cache made of runs could get wrong.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.request import Request


class Name(NamedTuple):
    """A full block's text: the owner of its last position, which fixes all before it, and its index."""

    owner: int
    index: int


class BlockKVCache:
    """Blocks 1 .. num_gpu_blocks - 1; block 0 is vLLM's null block."""

    def __init__(self, config: EngineConfig) -> None:
        self.block_size = config.block_size
        self.caching = config.enable_prefix_caching
        self.unnamed_first = config.free_unhashed_first
        blocks = range(1, config.num_gpu_blocks)
        self.name: dict[int, Name | None] = dict.fromkeys(blocks)
        self.refs = dict.fromkeys(blocks, 0)
        self.free_queue: OrderedDict[int, None] = OrderedDict.fromkeys(blocks)
        self.copies: dict[Name, dict[int, None]] = {}  # oldest registered first
        self.held: dict[int, list[int]] = {}
        self.num_registered: dict[int, int] = {}
        self.counts: Counter[str] = Counter()

    @property
    def num_free_blocks(self) -> int:
        return len(self.free_queue)

    @property
    def num_cached_free_blocks(self) -> int:
        return sum(self.name[block] is not None for block in self.free_queue)

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_prefix(self, request: Request) -> list[int]:
        hits: list[int] = []
        if not self.caching:
            return hits
        for index in range((request.num_tokens - 1) // self.block_size):
            copies = self.copies.get(self._name_of(request, index))
            if not copies:
                break
            hits.append(next(iter(copies)))
        return hits

    def can_admit(self, hits: list[int], num_tokens: int, spare_blocks: int) -> bool:
        revived = sum(not self.refs[block] for block in hits)
        return self.num_blocks(num_tokens) - len(hits) + revived + spare_blocks <= self.num_free_blocks

    def num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        return self.num_blocks(num_tokens) - len(self.held.get(request.request_id, []))

    def admit(self, request: Request, hits: list[int]) -> None:
        assert not self.held.get(request.request_id)
        for block in hits:
            if not self.refs[block]:
                self.counts["free blocks revived"] += 1
                del self.free_queue[block]
            else:
                self.counts["held blocks shared"] += 1
            self.counts["hits on one of several copies"] += len(self.copies[self.name[block]]) > 1
            self.refs[block] += 1
        self.held[request.request_id] = list(hits)
        self.num_registered[request.request_id] = len(hits)

    def allocate(self, request: Request, num_tokens: int) -> None:
        for _ in range(self.num_missing_blocks(request, num_tokens)):
            self.held[request.request_id].append(self._take())

    def register(self, request: Request, num_tokens: int) -> None:
        if not self.caching:
            return
        num_full, done = num_tokens // self.block_size, self.num_registered[request.request_id]
        for index in range(done, num_full):
            block, name = self.held[request.request_id][index], self._name_of(request, index)
            self.counts["duplicates"] += name in self.copies
            self.name[block] = name
            self.copies.setdefault(name, {})[block] = None
        self.num_registered[request.request_id] = max(done, num_full)

    def free(self, request: Request) -> None:
        for block in reversed(self.held.pop(request.request_id, [])):
            self.refs[block] -= 1
            if self.refs[block]:
                continue
            self.free_queue[block] = None
            if self.name[block] is None and self.unnamed_first:
                self.free_queue.move_to_end(block, last=False)
        self.num_registered.pop(request.request_id, None)

    def free_names(self) -> list[Name | None]:
        """The free queue from its head, by name."""
        return [self.name[block] for block in self.free_queue]

    def _take(self) -> int:
        block, _ = self.free_queue.popitem(last=False)
        name = self.name[block]
        if name is not None:
            self.counts["evictions"] += 1
            self.counts["chains cut in the middle"] += Name(name.owner, name.index - 1) in self.copies
            self.counts["evictions of one of several copies"] += len(self.copies[name]) > 1
            del self.copies[name][block]
            if not self.copies[name]:
                del self.copies[name]
            self.name[block] = None
        self.refs[block] = 1
        return block

    def _name_of(self, request: Request, index: int) -> Name:
        last = (index + 1) * self.block_size - 1
        for owner, end in request.prompt:
            if last < end:
                return Name(owner, index)
        return Name(request.output_owner, index)
