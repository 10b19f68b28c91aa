"""The kernel calls behind points, on random data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from profiler.backends import Attention
from profiler.points import Heads, Point
from profiler.timer import Call, Effort, Measured, cpu_repeat, cuda_repeat, measure

CPU_CACHE_BYTES = 64 << 20
MOST_COPIES = 64


class Bench:
    """Measures points on one device."""

    def __init__(self, torch: Any, device: str, attention: Attention, effort: Effort, memory_bytes: float) -> None:
        self._torch, self._device, self._attention, self._effort = torch, device, attention, effort
        self._memory_bytes = memory_bytes
        is_cuda = device == "cuda"
        self._cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size if is_cuda else CPU_CACHE_BYTES
        self._builders: dict[str, Callable[[Point], list[Call]]] = {
            "gemm": self._gemm,
            "context_attention": self._context,
            "decode_attention": self._decode,
            "chunk": self._chunk,
            "unequal": self._unequal,
            "elementwise": self._elementwise,
            "sampler": self._sampler,
        }

    def measure(self, point: Point) -> Measured:
        """Microseconds of one call."""
        with self._torch.inference_mode():
            if point.family == "host":
                return measure(self._host(point), self._effort)
            calls = self._builders[point.family](point)
            if self._device == "cuda":
                return measure(cuda_repeat(self._torch, calls, self._effort), self._effort)
            for call in calls:
                call()
            return measure(cpu_repeat(calls, self._effort), self._effort)

    def copy_bytes_per_s(self) -> float:
        """What a copy of a large array reads and writes a second: the device's bandwidth as it can be had."""
        size = int(min(1 << 30 if self._device == "cuda" else 1 << 27, self._memory_bytes / 4))
        source = self._torch.zeros(size, dtype=self._torch.uint8, device=self._device)
        target = self._torch.empty_like(source)
        calls: list[Call] = [lambda: target.copy_(source)]
        calls[0]()
        make = (
            cuda_repeat(self._torch, calls, self._effort) if self._device == "cuda" else cpu_repeat(calls, self._effort)
        )
        return 2 * size / (measure(make, self._effort).latency_us * 1e-6)

    def _random(self, *shape: int) -> Any:
        return self._torch.randn(*shape, dtype=self._torch.bfloat16, device=self._device)

    def _copies(self, size_bytes: float) -> int:
        """Buffers to rotate through so that the caches hold none of them when it comes round."""
        wanted = math.ceil(2 * self._cache_bytes / max(1.0, size_bytes)) + 1
        return max(1, min(wanted, MOST_COPIES, int(self._memory_bytes / max(1.0, size_bytes))))

    def _gemm(self, point: Point) -> list[Call]:
        torch, n, k, m = self._torch, point["n"], point["k"], point["m"]
        if point["dtype"] == "fp8":
            return self._gemm_fp8(n, k, m)
        x, linear = self._random(m, k), torch.nn.functional.linear

        def one() -> Call:
            weights = self._random(n, k)
            return lambda: linear(x, weights)

        return [one() for _ in range(self._copies(2 * n * k))]

    def _gemm_fp8(self, n: int, k: int, m: int) -> list[Call]:
        """Both sides e4m3 with a scale for each row, as vLLM's fp8 models run; quantising the input included."""
        torch = self._torch
        if not hasattr(torch, "_scaled_mm") or self._device != "cuda":
            raise SystemExit("error: fp8 products need a GPU; expected --dtypes bf16")
        x, eight, largest = self._random(m, k), torch.float8_e4m3fn, 448.0

        def one() -> Call:
            weights = self._random(n, k).clamp(-largest, largest).to(eight).t()
            scale_b = torch.ones(1, n, device=self._device)

            def call() -> object:
                scale_a = x.abs().amax(dim=1, keepdim=True).float() / largest
                return torch._scaled_mm((x / scale_a).to(eight), weights, scale_a, scale_b, out_dtype=torch.bfloat16)

            return call

        return [one() for _ in range(self._copies(n * k))]

    def _attend(self, point: Point, queries: list[int], computed: list[int]) -> list[Call]:
        heads = Heads(point["heads"], point["kv_heads"], point["head_dim"])
        size = 4 * heads.kv_heads * heads.head_dim * (sum(queries) + sum(computed))
        return self._attention.calls(heads, point["kv_dtype"], queries, computed, self._copies(size))

    def _context(self, point: Point) -> list[Call]:
        return self._attend(point, [point["query"]] * point["batch"], [0] * point["batch"])

    def _decode(self, point: Point) -> list[Call]:
        return self._attend(point, [1] * point["batch"], [point["context"] - 1] * point["batch"])

    def _chunk(self, point: Point) -> list[Call]:
        return self._attend(point, [point["query"]], [point["computed"]])

    def _unequal(self, point: Point) -> list[Call]:
        """One sequence has the longest context, the others share what keeps the mean."""
        batch, mean, longest = point["batch"], point["mean"], point["longest"]
        others = max(1, (mean * batch - longest) // max(1, batch - 1))
        return self._attend(point, [1] * batch, [longest - 1, *[others - 1] * (batch - 1)])

    def _elementwise(self, point: Point) -> list[Call]:
        torch, kind, tokens, width = self._torch, point["kind"], point["tokens"], point["width"]
        passes = {"norm": 4, "rotary": 2, "activation": 3}[kind]
        count = self._copies(2 * passes * tokens * width)
        if kind == "norm":  # the residual is added and kept, then normed

            def norm() -> Call:
                x, residual, weight = self._random(tokens, width), self._random(tokens, width), self._random(width)

                def call() -> object:
                    residual.add_(x)
                    return torch.nn.functional.rms_norm(residual, (width,), weight)

                return call

            return [norm() for _ in range(count)]
        if kind == "rotary":

            def rotary() -> Call:
                x, cos, sin = (
                    self._random(tokens, 2, width // 2),
                    self._random(tokens, width // 2),
                    self._random(tokens, width // 2),
                )

                def call() -> object:
                    one, two = x[:, 0], x[:, 1]
                    rotated = one * cos - two * sin
                    two.mul_(cos).add_(one * sin)
                    return one.copy_(rotated)

                return call

            return [rotary() for _ in range(count)]

        def activation() -> Call:
            gate, up = self._random(tokens, width), self._random(tokens, width)
            return lambda: torch.nn.functional.silu(gate).mul_(up)

        return [activation() for _ in range(count)]

    def _sampler(self, point: Point) -> list[Call]:
        torch, rows, vocab = self._torch, point["rows"], point["vocab"]

        def one() -> Call:
            logits = self._random(rows, vocab)
            noise = torch.empty(rows, vocab, device=self._device).exponential_()
            return lambda: logits.float().softmax(dim=-1).div_(noise).argmax(dim=-1)

        return [one() for _ in range(self._copies(2 * rows * vocab))]

    def _host(self, point: Point) -> Callable[[], float]:
        """CPU time to prepare a step's inputs for so many sequences in Python, move them and read the tokens back.

        A floor: an engine's scheduler, detokeniser and processes come on top.
        """
        torch, sequences = self._torch, point["sequences"]
        pinned = torch.zeros(sequences, 4, dtype=torch.int64, pin_memory=self._device == "cuda")
        on_device = pinned.to(self._device)

        def repeat() -> float:
            begin = time.perf_counter()
            pinned.copy_(torch.tensor([(i, i + 1, i + 2, i + 3) for i in range(sequences)]))
            on_device.copy_(pinned, non_blocking=True)
            on_device.sum(dim=1).tolist()
            return (time.perf_counter() - begin) * 1e6

        repeat()
        return repeat
