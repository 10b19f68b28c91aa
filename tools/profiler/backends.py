"""Attention as a serving engine runs it: paged, of unequal lengths, where such kernels are installed; else torch's.

Run and tested on CPUs: `sdpa`. The others need a GPU and their packages; they are kept to one call each.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from profiler.points import Heads
from profiler.timer import Call

PAGE = 256
"""Tokens of a page: the smallest that FlashAttention-2 takes; the other kernels do not mind."""


class Attention(Protocol):
    """One back end. `copies`: calls on so many different caches, to be rotated."""

    name: str
    has_lengths: bool

    def calls(
        self, heads: Heads, kv_dtype: str, queries: Sequence[int], computed: Sequence[int], copies: int
    ) -> list[Call]:
        """Attention of sequences with so many query tokens each, on top of so many computed ones."""
        ...


class Sdpa:
    """torch.nn.functional.scaled_dot_product_attention over contiguous caches; all sequences alike."""

    name = "torch SDPA"
    has_lengths = False

    def __init__(self, torch: Any, device: str) -> None:
        self._torch, self._device = torch, device

    def calls(
        self, heads: Heads, kv_dtype: str, queries: Sequence[int], computed: Sequence[int], copies: int
    ) -> list[Call]:
        """See `Attention`; the new tokens' keys and values are written into the cache first where there are several."""
        torch, batch, query, before = self._torch, len(queries), queries[0], computed[0]
        if kv_dtype != "bf16":
            raise SystemExit(f"error: torch SDPA has no {kv_dtype} KV cache; expected bf16, or FlashInfer installed")
        attend, bias = torch.nn.functional.scaled_dot_product_attention, None
        if before and query > 1:
            bias = importlib.import_module("torch.nn.attention.bias").causal_lower_right(query, before + query)

        def random(kv: int, tokens: int) -> Any:
            return torch.randn(batch, kv, tokens, heads.head_dim, dtype=torch.bfloat16, device=self._device)

        def one() -> Call:
            q, new = random(heads.heads, query), random(heads.kv_heads, query)
            keys, values = random(heads.kv_heads, before + query), random(heads.kv_heads, before + query)

            def call() -> object:
                if query > 1 or not before:
                    keys[:, :, before:] = new
                    values[:, :, before:] = new
                causal = query > 1 and not before
                return attend(
                    q, keys, values, attn_mask=bias, is_causal=causal, enable_gqa=heads.heads != heads.kv_heads
                )

            return call

        return [one() for _ in range(copies)]


class _Paged:
    """What paged back ends share: caches of pages in random order, and who owns which."""

    def __init__(self, torch: Any, device: str) -> None:
        self._torch, self._device = torch, device

    def _cache(self, heads: Heads, queries: Sequence[int], computed: Sequence[int]) -> tuple[Any, Any, list[int], Any]:
        """(pages, 2, PAGE, kv_heads, head_dim) of random data, page numbers shuffled, pages of each, new slots."""
        torch = self._torch
        counts = [-(-(q + c) // PAGE) for q, c in zip(queries, computed, strict=True)]
        cache = torch.randn(
            sum(counts), 2, PAGE, heads.kv_heads, heads.head_dim, dtype=torch.bfloat16, device=self._device
        )
        pages = torch.randperm(sum(counts), device=self._device, dtype=torch.int32)
        slots, first = [], 0
        for count, query, before in zip(counts, queries, computed, strict=True):
            at = torch.arange(before, before + query, device=self._device)
            slots.append(pages[first + at // PAGE].long() * PAGE + at % PAGE)
            first += count
        return cache, pages, counts, torch.cat(slots)

    def _ints(self, values: Sequence[int]) -> Any:
        return self._torch.tensor(list(values), dtype=self._torch.int32, device=self._device)

    def _starts(self, counts: Sequence[int]) -> Any:
        return self._torch.nn.functional.pad(self._ints(counts).cumsum(0), (1, 0)).int()

    def _writes(self, cache: Any, slots: Any, heads: Heads, query: int) -> Call:
        """Keys and values of the new tokens go into the cache, as before a prompt's attention."""
        flat_k, flat_v = (cache[:, part].reshape(-1, heads.kv_heads, heads.head_dim) for part in (0, 1))
        new = self._torch.randn_like(flat_k[: slots.numel()].to(self._torch.bfloat16)).to(cache.dtype)

        def write() -> None:
            if query > 1:
                flat_k.index_copy_(0, slots, new)
                flat_v.index_copy_(0, slots, new)

        return write


class FlashAttention(_Paged):
    """flash_attn_varlen_func with a block table: of the package flash-attn, or vLLM's build of it."""

    has_lengths = True

    def __init__(self, torch: Any, device: str, module: str) -> None:
        super().__init__(torch, device)
        self.name = f"{module}.flash_attn_varlen_func"
        self._attend = importlib.import_module(module).flash_attn_varlen_func
        self._is_vllm = module.startswith("vllm")

    def calls(
        self, heads: Heads, kv_dtype: str, queries: Sequence[int], computed: Sequence[int], copies: int
    ) -> list[Call]:
        """See `Attention`."""
        torch = self._torch
        if kv_dtype != "bf16":
            raise SystemExit(f"error: {self.name} is driven with bf16 KV caches only; fp8 needs FlashInfer")
        lengths = [q + c for q, c in zip(queries, computed, strict=True)]
        common = {"max_seqlen_q": max(queries), "max_seqlen_k": max(lengths), "causal": True}
        common["cu_seqlens_q"] = self._starts(queries)
        common |= {"seqused_k": self._ints(lengths)} if self._is_vllm else {"cu_seqlens_k": self._starts(lengths)}

        def one() -> Call:
            cache, pages, counts, slots = self._cache(heads, queries, computed)
            table = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=self._device)
            for row, (count, first) in enumerate(zip(counts, self._starts(counts).tolist(), strict=False)):
                table[row, :count] = pages[first : first + count]
            keys, values = cache[:, 0].contiguous(), cache[:, 1].contiguous()
            q = torch.randn(sum(queries), heads.heads, heads.head_dim, dtype=torch.bfloat16, device=self._device)
            write = self._writes(torch.stack((keys, values), 1), slots, heads, max(queries))

            def call() -> object:
                write()
                return self._attend(q, keys, values, block_table=table, **common)

            return call

        return [one() for _ in range(copies)]


class FlashInfer(_Paged):
    """FlashInfer's wrappers of paged caches, bf16 or fp8."""

    name = "flashinfer"
    has_lengths = True

    def __init__(self, torch: Any, device: str) -> None:
        super().__init__(torch, device)
        self._module = importlib.import_module("flashinfer")
        self._workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)

    def calls(
        self, heads: Heads, kv_dtype: str, queries: Sequence[int], computed: Sequence[int], copies: int
    ) -> list[Call]:
        """See `Attention`."""
        torch, is_decode = self._torch, max(queries) == 1
        dtype = torch.bfloat16 if kv_dtype == "bf16" else torch.float8_e4m3fn
        last = self._ints([(q + c - 1) % PAGE + 1 for q, c in zip(queries, computed, strict=True)])

        def one() -> Call:
            cache, pages, counts, slots = self._cache(heads, queries, computed)
            cache = cache.to(dtype)
            shape = (heads.heads, heads.kv_heads, heads.head_dim, PAGE)
            kinds = {"q_data_type": torch.bfloat16, "kv_data_type": dtype}
            if is_decode:
                wrapper = self._module.BatchDecodeWithPagedKVCacheWrapper(self._workspace, "NHD", use_tensor_cores=True)
                wrapper.plan(self._starts(counts), pages, last, *shape, **kinds)
            else:
                wrapper = self._module.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
                wrapper.plan(self._starts(queries), self._starts(counts), pages, last, *shape, causal=True, **kinds)
            q = torch.randn(sum(queries), heads.heads, heads.head_dim, dtype=torch.bfloat16, device=self._device)
            write = self._writes(cache, slots, heads, max(queries))

            def call() -> object:
                write()
                return wrapper.run(q, cache)

            return call

        return [one() for _ in range(copies)]


CHOICES = ("auto", "flashinfer", "vllm", "flash-attn", "sdpa")
_MODULES = {"flashinfer": "flashinfer", "vllm": "vllm.vllm_flash_attn", "flash-attn": "flash_attn"}


def attention(torch: Any, device: str, wanted: str) -> Attention:
    """The back end asked for; `auto`: the first that is installed, on a CPU torch's own."""
    for choice in CHOICES[1:-1] if wanted == "auto" else (wanted,):
        if choice == "sdpa" or (wanted == "auto" and device == "cpu"):
            break
        try:
            importlib.import_module(_MODULES[choice])
        except ImportError as error:
            if wanted != "auto":
                raise SystemExit(f"error: --attention {choice}: {error}") from None
            continue
        return FlashInfer(torch, device) if choice == "flashinfer" else FlashAttention(torch, device, _MODULES[choice])
    return Sdpa(torch, device)
