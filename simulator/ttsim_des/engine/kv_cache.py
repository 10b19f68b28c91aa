"""KV blocks: a pool with a free queue, and the block-exact prefix cache of vLLM V1.

A full block is named by the text it holds: its index in the sequence and the owner of its last position (an owner
fixes everything before it, so the pair stands for the whole prefix). Several physical blocks may hold the same
text; the oldest is handed out. A free block keeps its name until it is taken for something else, so the free
queue is also the cache, evicted from its head.
"""

from __future__ import annotations

from collections import OrderedDict

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.request import Request

_INDEX_BITS = 32
_NO_KEY = None


class KVCacheManager:
    """Who holds which block. `can_allocate` asks, `allocate` does; a freed block is not forgotten."""

    def __init__(self, config: EngineConfig) -> None:
        self.block_size = config.block_size
        self.num_usable_blocks = config.num_gpu_blocks - 1  # block 0 is vLLM's null block
        self._caching = config.enable_prefix_caching
        self._unhashed_first = config.free_unhashed_first
        self._key: list[int | None] = [_NO_KEY] * config.num_gpu_blocks
        self._refs = [0] * config.num_gpu_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, config.num_gpu_blocks))
        self._copies: dict[int, dict[int, None]] = {}
        self.num_cached_free_blocks = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, request: Request) -> list[int]:
        """The blocks of the longest cached prefix, in order.

        At most what covers all but one known token: something must be computed to have logits to sample from.
        """
        if not self._caching:
            return []
        hits: list[int] = []
        copies_of, block_size = self._copies, self.block_size
        for index in range((request.num_tokens - 1) // block_size):
            copies = copies_of.get(_block_key(request, index, block_size))
            if not copies:
                break
            hits.append(next(iter(copies)))
        return hits

    def can_admit(self, request: Request, hits: list[int], num_tokens: int, spare_blocks: int) -> bool:
        """Whether `num_tokens` tokens, of which `hits` are cached, fit now and leave `spare_blocks` free.

        Hits that lie in the free queue are taken out of it, so they count as needed.
        """
        revived = sum(1 for block in hits if not self._refs[block])
        needed = self.num_blocks(num_tokens) - len(hits) + revived
        return needed + spare_blocks <= len(self._free)

    def num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Blocks to take so that `request` holds room for `num_tokens` tokens."""
        return self.num_blocks(num_tokens) - len(request.block_ids)

    def admit(self, request: Request, hits: list[int]) -> None:
        """Give `request`, which holds nothing, a reference to each cached block of its prefix."""
        assert not request.block_ids
        for block in hits:
            if not self._refs[block]:
                del self._free[block]
                self.num_cached_free_blocks -= 1
            self._refs[block] += 1
        request.block_ids = list(hits)
        request.num_registered_blocks = len(hits)

    def allocate(self, request: Request, num_tokens: int) -> None:
        """Take blocks until `request` has room for `num_tokens` tokens; the caller has asked that they are there."""
        for _ in range(self.num_missing_blocks(request, num_tokens)):
            request.block_ids.append(self._take())

    def register(self, request: Request, num_tokens: int) -> None:
        """Name the blocks that the first `num_tokens` tokens fill, so that others can hit them."""
        if not self._caching:
            return
        num_full = num_tokens // self.block_size
        for index in range(request.num_registered_blocks, num_full):
            block = request.block_ids[index]
            key = _block_key(request, index, self.block_size)
            self._key[block] = key
            self._copies.setdefault(key, {})[block] = None
        request.num_registered_blocks = max(request.num_registered_blocks, num_full)

    def free(self, request: Request) -> None:
        """Drop the references of `request`, tail first.

        Blocks that nobody else holds become free: named ones at the end of the queue (so the tail of a prefix is
        evicted before its head), the others at its front, or in older engines at the end as well.
        """
        for block in reversed(request.block_ids):
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            self._free[block] = None
            if self._key[block] is not _NO_KEY:
                self.num_cached_free_blocks += 1
            elif self._unhashed_first:
                self._free.move_to_end(block, last=False)
        request.block_ids = []
        request.num_registered_blocks = 0

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        key = self._key[block]
        if key is not _NO_KEY:
            copies = self._copies[key]
            del copies[block]
            if not copies:
                del self._copies[key]
            self._key[block] = _NO_KEY
            self.num_cached_free_blocks -= 1
        self._refs[block] = 1
        return block


def _block_key(request: Request, index: int, block_size: int) -> int:
    return (request.owner_at((index + 1) * block_size - 1) << _INDEX_BITS) | index
