"""KV blocks without an object for each: a free queue and a prefix cache made of runs of blocks.

A full block is named by the text it holds: its index in the sequence and the owner of its last position (an owner
fixes everything before it, so the pair stands for the whole prefix, as vLLM's chained hash does). An `Extent` is a
run of such blocks of one owner with the same holders. Several extents may hold copies of the same block; the one
registered first is handed out. A free block keeps its name until it is taken for something else, so the
free queue is also the cache, evicted from its head.

Exact block by block: tests/engine/block_oracle.py is the same cache with an object for every block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

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


class Piece(NamedTuple):
    """Blocks `low` .. `high` - 1 of an extent that hits them."""

    extent: Extent
    low: int
    high: int


class Holding(NamedTuple):
    """`blocks` named blocks of a request, from the start of `first` on, through its `upper` extents."""

    first: Extent
    blocks: int


class KVCacheManager:
    """Who holds which block. `can_admit` asks, `admit` and `allocate` do; a freed block is not forgotten."""

    def __init__(self, config: EngineConfig) -> None:
        self.block_size = config.block_size
        self.num_usable_blocks = config.num_gpu_blocks - 1  # block 0 is vLLM's null block
        self.num_free_blocks = 0
        self.num_cached_free_blocks = 0
        self._caching = config.enable_prefix_caching
        self._unnamed_first = config.free_unhashed_first
        self._queue = Extent(None, 0, 0, 0)  # a ring: `after` is the head of the free queue, `before` its end
        self._extents: dict[int, list[Extent]] = {}
        self._put_unnamed(self.num_usable_blocks)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    # ---- asking ----

    def find_prefix(self, request: Request) -> list[Piece]:
        """The longest cached prefix, piece by piece in order.

        At most what covers all but one known token: something must be computed to have logits to sample from.
        """
        hits: list[Piece] = []
        if not self._caching:
            return hits
        for owner, first, end in self._named_blocks(request, 0, (request.num_tokens - 1) // self.block_size):
            copies, index = self._extents.get(owner), first
            while index < end:
                piece = _oldest_copy(copies, index, end) if copies else None
                if piece is None:
                    return hits
                hits.append(piece)
                index = piece.high
        return hits

    def can_admit(self, request: Request, hits: list[Piece], num_tokens: int, spare_blocks: int) -> bool:
        """Whether `num_tokens` tokens, of which `hits` are cached, fit now and leave `spare_blocks` free.

        Hits that lie in the free queue are taken out of it, so they count as needed.
        """
        held = sum(piece.high - piece.low for piece in hits if piece.extent.refs)
        return self.num_blocks(num_tokens) - held + spare_blocks <= self.num_free_blocks

    def num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Blocks to take so that `request` holds room for `num_tokens` tokens."""
        return self.num_blocks(num_tokens) - request.num_blocks

    # ---- doing ----

    def admit(self, request: Request, hits: list[Piece]) -> None:
        """Give `request`, which holds nothing, a reference to each cached block of its prefix."""
        assert not request.num_blocks
        for piece, low, high in hits:
            extent = self._split(piece, low) if low > piece.low else piece
            if high < extent.high:
                self._split(extent, high)
            if not extent.refs:
                self._unlink(extent)
                self.num_free_blocks -= high - low
                self.num_cached_free_blocks -= high - low
            extent.refs += 1
            request.holdings.append(Holding(extent, high - low))
            request.num_blocks += high - low
        request.num_registered_blocks = request.num_blocks
        request.growing = False

    def allocate(self, request: Request, num_tokens: int) -> None:
        """Take blocks until `request` has room for `num_tokens` tokens; the caller has asked that they are there."""
        missing = self.num_missing_blocks(request, num_tokens)
        if missing > 0:
            request.num_blocks += missing
            self.take(missing)

    def take(self, count: int) -> None:
        """Take blocks from the head of the free queue; named ones are forgotten, from the top of their extent down."""
        assert count <= self.num_free_blocks
        self.num_free_blocks -= count
        while count:
            extent = self._queue.after
            taken = min(count, extent.high - extent.low)
            extent.high -= taken
            count -= taken
            if extent.owner is not None:
                self.num_cached_free_blocks -= taken
            if extent.high == extent.low:
                self._unlink(extent)
                if extent.owner is not None:
                    self._forget(extent, extent.owner)

    def register(self, request: Request, num_tokens: int) -> None:
        """Name the blocks that the first `num_tokens` tokens fill, so that others can hit them."""
        num_full = num_tokens // self.block_size
        if not self._caching or num_full <= request.num_registered_blocks:
            return
        named = request.num_registered_blocks
        if named >= request.prompt_tokens // self.block_size:  # its own output, as at the end of every request
            pieces: Iterable[tuple[int, int, int]] = ((request.output_owner, named, num_full),)
        else:
            pieces = self._named_blocks(request, named, num_full)
        for owner, low, high in pieces:
            copies = self._extents.setdefault(owner, [])
            last = request.holdings[-1] if request.growing else None
            if last and copies and copies[-1] is last.first and last.first.high == low and last.first.refs == 1:
                last.first.high = high
                request.holdings[-1] = Holding(last.first, high - last.first.low)
                continue
            extent = Extent(owner, low, high, 1)
            copies.append(extent)
            request.holdings.append(Holding(extent, high - low))
            request.growing = True
        request.num_registered_blocks = num_full

    def free(self, request: Request) -> None:
        """Drop the references of `request`, tail first.

        Blocks that nobody else holds become free: named ones at the end of the queue (so the tail of a prefix is
        evicted before its head), the others at its front, or in older engines at the end as well.
        """
        self._put_unnamed(request.num_blocks - request.num_registered_blocks)
        for first, blocks in reversed(request.holdings):
            whole = first.high - first.low == blocks
            for extent in (first,) if whole else reversed(list(_extents_of(first, blocks))):
                extent.refs -= 1
                if not extent.refs:
                    self._link_before(self._queue, extent)
                    self.num_free_blocks += extent.high - extent.low
                    self.num_cached_free_blocks += extent.high - extent.low
        request.holdings = []
        request.num_blocks = request.num_registered_blocks = 0

    # ---- inside ----

    def _named_blocks(self, request: Request, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Blocks `low` .. `high` - 1 of a request's text, by owner: (owner, first, past the last)."""
        for owner, end in request.prompt:
            stop = min(end // self.block_size, high)
            if low < stop:
                yield owner, low, stop
                low = stop
        if low < high:
            yield request.output_owner, low, high

    def _put_unnamed(self, count: int) -> None:
        if not count:
            return
        self.num_free_blocks += count
        ring = self._queue
        place = ring.after if self._unnamed_first else ring
        beside = ring.after if self._unnamed_first else ring.before
        if beside is not ring and beside.owner is None:
            beside.high += count
        else:
            self._link_before(place, Extent(None, 0, count, 0))

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

    def _forget(self, extent: Extent, owner: int) -> None:
        copies = self._extents[owner]
        copies.remove(extent)
        if not copies:
            del self._extents[owner]

    @staticmethod
    def _link_before(place: Extent, extent: Extent) -> None:
        extent.before, extent.after = place.before, place
        place.before.after = extent
        place.before = extent

    @staticmethod
    def _unlink(extent: Extent) -> None:
        extent.before.after, extent.after.before = extent.after, extent.before
        # A held extent must not keep those alive that once lay beside it.
        extent.before = extent.after = _NOWHERE


def _oldest_copy(copies: list[Extent], low: int, high: int) -> Piece | None:
    """The oldest copy of block `low`, as far as it is the oldest and holds blocks below `high`."""
    end = high
    for extent in copies:
        if extent.low <= low < extent.high:
            return Piece(extent, low, min(end, extent.high))
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
