"""The decode batch's sums, where a sequence leaves and comes back; extents that are let go."""

from ttsim_des.engine.batch import DecodeBatch
from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.kv_cache import Extent, KVCacheManager
from ttsim_des.engine.request import Place, Request


def request(number: int, base: int) -> Request:
    made = Request(number, 16, 10, ((number, 16),), 0)
    made.serial, made.base = number, base
    return made


def test_the_longest_context_after_one_was_left_out_of_a_step() -> None:
    batch, longest, left_out = DecodeBatch(16), request(0, 50), request(1, 60)
    batch.add(longest, 0)
    batch.add(left_out, 0)
    for member in (longest, left_out):
        batch.remove(member, Place.ELSEWHERE, 0)
    batch.clear()
    left_out.base = 20
    batch.add(longest, 0)
    batch.add(left_out, 0)
    assert batch.shape(100).decode_ctx_max == 150


def test_a_held_extent_does_not_keep_evicted_ones_alive() -> None:
    kv = KVCacheManager(EngineConfig(num_gpu_blocks=9, block_size=16))
    held = request(0, 0)
    kv.allocate(held, 16)
    kv.register(held, 16)
    kv.free(held)
    kv.admit(held, kv.find_prefix(Request(1, 17, 1, ((0, 16), (1, 17)), 0)))
    first = held.holdings[0][0]
    assert (first.before.owner, first.after.owner, len(first.before)) == (None, None, 0)
    assert isinstance(first.before, Extent)
    assert first.before is not kv._queue
