"""KV blocks without an object for each: a free queue and a prefix cache made of runs of blocks.

A full block is named by the text it holds: its index in the sequence and the owner of its last position (an owner
fixes everything before it, so the pair stands for the whole prefix, as vLLM's chained hash does). An `Extent` is a
run of such blocks of one owner with the same holders. Several extents may hold copies of the same block; the one
registered first is handed out. A free block keeps its name until it is taken for something else, so the
free queue is also the cache, evicted from its head.

Exact block by block: tests/engine/block_oracle.py is the same cache with an object for every block.
"""

from __future__ import annotations

from collections.abc import Iterator

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.request import Request


class Extent:
    """Blocks `low` .. `high` - 1 of the text of `owner` (None: blocks without a name, `low` = 0).

    `refs` requests hold all of them. While nobody does, the extent lies in the free queue between `before` and
    `after`, its highest block first. `upper` is the extent split off its top, if any: a holder of more blocks than
    this extent has goes on there.
    """

    __slots__ = ("after", "before", "high", "low", "owner", "refs", "upper")

    def __init__(self, owner: int | None, low: int, high: int, refs: int) -> None:
        self.owner, self.low, self.high, self.refs = owner, low, high, refs
        self.upper: Extent | None = None
        self.before: Extent = self
        self.after: Extent = self

    def __len__(self) -> int:
        return self.high - self.low


Piece = tuple[Extent, int, int]
"""(extent, low, high): an extent that hits blocks `low` .. `high` - 1."""

Holding = tuple[Extent, int]
"""(first, blocks): that many named blocks of a request, from the start of `first` on, through its `upper` extents."""


class KVCacheManager:
    """Who holds which block. `can_admit` asks, `admit` and `allocate` do; a freed block is not forgotten.

    The free queue begins with blocks without a name, of which only the number counts; extents follow. Taking blocks is
    a subtraction: which extents they come from shows when the next prefix is looked up.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.block_size = config.block_size
        self.num_usable_blocks = config.num_gpu_blocks - 1  # block 0 is vLLM's null block
        self.num_free_blocks = self.num_usable_blocks
        self._num_queued = 0
        """Free blocks in the extents of the queue; where this is more than are free, the others are taken."""
        self._num_gone = 0
        """Beside them, blocks that were taken before unnamed ones became free, and lie there still."""
        self._num_unnamed_queued = 0
        """Blocks without a name there, in older engines, where such blocks join the end of the queue."""
        self._caching = config.enable_prefix_caching
        self._unnamed_first = config.free_unhashed_first
        self._queue = Extent(None, 0, 0, 0)  # a ring: `after` is the head of the free queue, `before` its end
        self._extents: dict[int, list[Extent]] = {}

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    # ---- asking ----

    def num_cached_free_blocks(self) -> int:
        """Free blocks with a name."""
        if self._num_unnamed_queued:
            self._evict()
        free, queued = self.num_free_blocks, self._num_queued
        return (queued if queued < free else free) - self._num_unnamed_queued

    def find_prefix(self, request: Request) -> list[Piece]:
        """The longest cached prefix, piece by piece in order from block 0 on.

        At most what covers all but one known token: something must be computed to have logits to sample from.
        """
        hits: list[Piece] = []
        if self._caching:
            self._evict()
            block_size, low = self.block_size, 0
            limit = (request.prompt_tokens + request.num_output_tokens - 1) // block_size
            for owner, end in request.prompt:
                stop = end // block_size if end // block_size < limit else limit
                if low < stop and (low := self._hit(owner, low, stop, hits)) < stop:
                    return hits
            if low < limit:
                self._hit(-1 - request.request_id, low, limit, hits)
        return hits

    def can_admit(self, hits: list[Piece], num_tokens: int, spare_blocks: int) -> bool:
        """Whether `num_tokens` tokens, of which `hits` are cached, fit now and leave `spare_blocks` free.

        Hits that lie in the free queue are taken out of it, so they count as needed.
        """
        needed = -(-num_tokens // self.block_size) + spare_blocks
        for extent, low, high in hits:
            if extent.refs:
                needed -= high - low
        return needed <= self.num_free_blocks

    def num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Blocks to take so that `request` holds room for `num_tokens` tokens."""
        return -(-num_tokens // self.block_size) - request.num_blocks

    # ---- doing ----

    def admit(self, request: Request, hits: list[Piece]) -> None:
        """Give `request`, which holds nothing, a reference to each cached block of its prefix."""
        assert not request.num_blocks
        for piece, low, high in hits:
            extent = self._split(piece, low) if low > piece.low else piece
            if high < extent.high:
                self._split(extent, high)
            if not extent.refs:
                extent.before.after, extent.after.before = extent.after, extent.before
                extent.before = extent.after = _NOWHERE
                self.num_free_blocks -= high - low
                self._num_queued -= high - low
            extent.refs += 1
            request.holdings.append((extent, high - low))
        if hits:
            request.num_registered_blocks = request.num_blocks = hits[-1][2]

    def admit_alike(self, request: Request, other: Request, num_hits: int, missing: int) -> None:
        """Give `request`, which holds nothing, what `other` has just got: references to the `num_hits` pieces of its
        prefix, `missing` blocks, and as many names for them.
        """
        shared = request.holdings = other.holdings[:num_hits]
        for extent, _ in shared:
            extent.refs += 1
        self.take(missing)
        for extent, _ in other.holdings[num_hits:]:
            assert extent.owner is not None
            self._name(request, extent.owner, extent.low, extent.high)
        request.num_registered_blocks, request.num_blocks = other.num_registered_blocks, other.num_blocks

    def allocate(self, request: Request, num_tokens: int) -> None:
        """Take blocks until `request` has room for `num_tokens` tokens; the caller has asked that they are there."""
        missing = -(-num_tokens // self.block_size) - request.num_blocks
        if missing > 0:
            request.num_blocks += missing
            self.take(missing)

    def take(self, count: int) -> None:
        """Take blocks from the head of the free queue; named ones are forgotten, from the top of their extent down."""
        self.num_free_blocks -= count
        assert self.num_free_blocks >= 0, "more blocks taken than are free"

    def register(self, request: Request, num_tokens: int) -> None:
        """Name the blocks that the first `num_tokens` tokens fill, so that others can hit them."""
        block_size, named = self.block_size, request.num_registered_blocks
        num_full = num_tokens // block_size
        if not self._caching or num_full <= named:
            return
        if named < request.prompt_tokens // block_size:
            for owner, end in request.prompt:
                stop = end // block_size if end // block_size < num_full else num_full
                if named < stop:
                    self._name(request, owner, named, stop)
                    named = stop
        if named < num_full:
            self._name(request, -1 - request.request_id, named, num_full)
        request.num_registered_blocks = num_full

    def free(self, request: Request, tail: Extent | None = None) -> None:
        """Drop the references of `request`, tail first; `tail` are its last named blocks, if nobody holds them.

        Blocks that nobody else holds become free: named ones at the end of the queue (so the tail of a prefix is
        evicted before its head), the others at its front, or in older engines at the end as well.
        """
        unnamed = request.num_blocks - request.num_registered_blocks
        if unnamed:
            self._put_unnamed(unnamed)
        queue, freed, holdings = self._queue, 0, request.holdings
        last = queue.before
        if tail is not None:
            freed = tail.high - tail.low
            last.after, tail.before = tail, last
            last = tail
        for first, blocks in reversed(holdings):
            if first.high - first.low == blocks:  # as most
                if first.refs == 1:
                    first.refs = 0
                    freed += blocks
                    last.after, first.before = first, last
                    last = first
                else:
                    first.refs -= 1
                continue
            for extent in reversed(list(_extents_of(first, blocks))):
                extent.refs -= 1
                if not extent.refs:
                    freed += extent.high - extent.low
                    last.after, extent.before = extent, last
                    last = extent
        last.after, queue.before = queue, last
        self.num_free_blocks += freed
        self._num_queued += freed
        holdings.clear()
        request.num_blocks = request.num_registered_blocks = 0
        request.growing = False

    def retire(self, request: Request, num_tokens: int) -> None:
        """`register` and `free` at once, as at the end of a request that has decoded."""
        low, high, owner = request.num_registered_blocks, num_tokens // self.block_size, -1 - request.request_id
        own: Extent | None = None
        if low < high and self._caching:
            if owner in self._extents or low < request.prompt_tokens // self.block_size:
                self.register(request, num_tokens)
            else:  # its own text, of which nothing has a name yet
                own = Extent(owner, low, high, 0)
                self._extents[owner] = [own]
                request.num_registered_blocks = high
        self.free(request, own)

    # ---- inside ----

    def _hit(self, owner: int, low: int, stop: int, hits: list[Piece]) -> int:
        """Add what is cached of blocks `low` .. `stop` - 1 of an owner's text; returns the first that is not."""
        copies = self._extents.get(owner)
        while copies and low < stop:
            piece = _oldest_copy(copies, low, stop)
            if piece is None:
                break
            hits.append(piece)
            low = piece[2]
        return low

    def _name(self, request: Request, owner: int, low: int, high: int) -> None:
        """Name the next blocks of a request: a new extent, or the last one grows where nobody else has seen it."""
        copies = self._extents.get(owner)
        if copies is None:
            copies = self._extents[owner] = []
        elif request.growing:
            last, _ = request.holdings[-1]
            if copies[-1] is last and last.high == low and last.refs == 1:
                last.high = high
                request.holdings[-1] = (last, high - last.low)
                return
        extent = Extent(owner, low, high, 1)
        copies.append(extent)
        request.holdings.append((extent, high - low))
        request.growing = True

    def _evict(self) -> None:
        """Let go what is taken: extents at the queue's head, and the top of the next one."""
        self._let_go()
        queue, extents, taken, self._num_gone = self._queue, self._extents, self._num_gone, 0
        extent = queue.after
        while taken and (size := extent.high - extent.low) <= taken:
            owner, after = extent.owner, extent.after
            extent.high = extent.low
            extent.before = extent.after = _NOWHERE
            if owner is None:
                self._num_unnamed_queued -= size
            else:
                copies = extents[owner]
                if len(copies) == 1:
                    del extents[owner]
                else:
                    copies.remove(extent)
            extent, taken = after, taken - size
        if extent is not queue.after:
            queue.after, extent.before = extent, queue
        if taken:
            extent.high -= taken
            if extent.owner is None:
                self._num_unnamed_queued -= taken

    def _let_go(self) -> None:
        """Queued blocks that are taken count as such: unnamed ones that become free do not make up for them."""
        taken = self._num_queued - self.num_free_blocks
        if taken > 0:
            self._num_gone += taken
            self._num_queued -= taken

    def _put_unnamed(self, count: int) -> None:
        """Blocks without a name become free."""
        if self._unnamed_first:
            self._let_go()
            self.num_free_blocks += count
            return
        last = self._queue.before
        if last.owner is None and last is not self._queue:
            last.high += count
        else:
            self._link_before(self._queue, Extent(None, 0, count, 0))
        self.num_free_blocks += count
        self._num_queued += count
        self._num_unnamed_queued += count

    def _split(self, extent: Extent, at: int) -> Extent:
        """Cut an extent in two at block `at`; returns the upper one, which comes first in the free queue."""
        upper = Extent(extent.owner, at, extent.high, extent.refs)
        upper.upper, extent.upper = extent.upper, upper
        extent.high = at
        if not extent.refs:
            self._link_before(extent, upper)
        assert extent.owner is not None
        copies = self._extents[extent.owner]
        copies.insert(copies.index(extent) + 1, upper)
        return upper

    @staticmethod
    def _link_before(place: Extent, extent: Extent) -> None:
        extent.before, extent.after = place.before, place
        place.before.after = extent
        place.before = extent


def _oldest_copy(copies: list[Extent], low: int, high: int) -> Piece | None:
    """The oldest copy of block `low`, as far as it is the oldest and holds blocks below `high`."""
    end = high
    for extent in copies:
        if extent.low <= low < extent.high:
            return extent, low, end if end < extent.high else extent.high
        if low < extent.low < end:
            end = extent.low  # from there on this older copy is handed out
    return None


def _extents_of(first: Extent, blocks: int) -> Iterator[Extent]:
    extent: Extent | None = first
    left = blocks
    while left:
        assert extent is not None
        yield extent
        left -= extent.high - extent.low
        extent = extent.upper


_NOWHERE = Extent(None, 0, 0, 0)
"""Beside a held extent, which must not keep those alive that once lay there."""
