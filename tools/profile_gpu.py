"""Measure the kernels that a model needs on this machine, and write them as a GPU profile.

    python tools/profile_gpu.py Qwen3-8B --tp 1,2 --out profiles/my-gpu --quick
    python tools/profile_gpu.py Qwen3-8B --dry-run
    ttsim-des run best-of-n --set cluster.gpu=profiles/my-gpu --set cluster.model=Qwen3-8B

Needs the extra `profile` (torch), and for the last digit the attention kernels that your engine uses (FlashInfer,
flash-attn or vLLM). Interrupt it whenever you like: the same command goes on where it stopped. docs/profile-your-gpu.md
goes through it step by step.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from profiler.backends import CHOICES, attention
from profiler.points import Domain, Needs
from profiler.survey import Survey, dry_run
from profiler.timer import Effort
from ttsim_des.errors import InputError
from ttsim_des.latency.geometry import load_geometry

QUICK = Effort(precision=0.02, seconds=0.1)
FULL = Effort(precision=0.01, seconds=0.6)
EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile; returns the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        geometry = load_geometry(asked.model, Path())
    except InputError as error:
        return _refuse(str(error))
    wrong = [tp for tp in asked.tp if geometry.heads % tp or tp < 1]
    if wrong:
        return _refuse(f"--tp {wrong[0]} does not divide the {geometry.heads} heads of {geometry.name}")
    needs = Needs.of(geometry, asked.tp, asked.dtypes, asked.kv_dtypes)
    memory_bytes = asked.memory_gib * 2**30 if asked.memory_gib else _free_bytes(asked.device) / 2
    tokens = asked.max_tokens or (2048 if asked.quick else 8192)
    context = min(geometry.max_position, asked.max_context or (16384 if asked.quick else 131072))
    domain = Domain(tokens, asked.max_batch or (256 if asked.quick else 512), context, memory_bytes)
    effort = QUICK if asked.quick else FULL
    if asked.seconds_per_point:
        effort = Effort(effort.precision, asked.seconds_per_point, sample_us=min(100.0, asked.seconds_per_point * 5e4))
    if asked.dry_run:
        print(dry_run(needs, domain, effort, asked.device, quick=asked.quick))
        return 0
    if importlib.util.find_spec("torch") is None:
        return _refuse("torch is not installed; expected: pip install 'ttsim-des[profile]'")
    torch = importlib.import_module("torch")
    if asked.device == "cuda" and not torch.cuda.is_available():
        return _refuse("--device cuda: torch sees no GPU; expected one, or --device cpu")
    if asked.device == "cuda" and max(asked.tp) > torch.cuda.device_count():
        return _refuse(f"--tp {max(asked.tp)}: this machine has {torch.cuda.device_count()} GPUs")
    torch.manual_seed(0)
    try:
        back_end = attention(torch, asked.device, asked.attention)
        survey = Survey(torch, asked.device, back_end, effort, needs, domain, geometry.name, quick=asked.quick)
        return survey.run(asked.out, restart=asked.restart)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted: what was measured is in {asked.out}; the same command goes on from there", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return EXIT_BAD_INPUT
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a GPU (or CPU) profile for ttsim-des.")
    parser.add_argument("model", help="a bundled model, a geometry .toml, or a Hugging Face config.json")
    parser.add_argument(
        "--tp", type=_integers, default=[1], metavar="1,2,...", help="tensor-parallel degrees (default 1)"
    )
    parser.add_argument(
        "--dtypes", type=_names, default=["bf16"], metavar="bf16,fp8", help="of products (default bf16)"
    )
    parser.add_argument("--kv-dtypes", type=_names, default=["bf16"], metavar="bf16,fp8", help="of the KV cache")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--attention", choices=CHOICES, default="auto", help="attention kernels (default: what is installed)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-profile"), help="the profile's directory (default gpu-profile)"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="minutes: a coarse grid, 2 %% precision")
    size.add_argument("--full", action="store_false", dest="quick", help="an hour or more: the default")
    parser.add_argument("--max-tokens", type=_positive, help="largest step and longest prompt to measure")
    parser.add_argument("--max-batch", type=_positive, help="most sequences that decode together")
    parser.add_argument("--max-context", type=_positive, help="longest context (default: the model's, at most 131072)")
    parser.add_argument("--memory-gib", type=float, help="memory that a point may take (default: half of what is free)")
    parser.add_argument("--seconds-per-point", type=float, help="at most so long on one point (default 0.1 or 0.6)")
    parser.add_argument("--restart", action="store_true", help="measure anew what the directory already has")
    parser.add_argument(
        "--dry-run", action="store_true", help="say how many points, how long, how much memory; measure nothing"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _integers(text: str) -> list[int]:
    return sorted({_positive(part) for part in text.split(",")})


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ("bf16", "fp8")]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected bf16 or fp8")
    return names


def _free_bytes(device: str) -> float:
    """Memory that is free: of the GPU where torch sees one, else of the machine."""
    if device == "cuda" and importlib.util.find_spec("torch") is not None:
        torch: Any = importlib.import_module("torch")
        if torch.cuda.is_available():
            return float(torch.cuda.mem_get_info()[0])
        return 80e9  # a dry run elsewhere
    import os

    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def _refuse(message: str) -> int:
    print(message if message.startswith("error") else f"error: {message}", file=sys.stderr)
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
