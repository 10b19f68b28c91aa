"""Record a running server: send a load to an OpenAI-compatible endpoint, note every token, write a recording.

    python tools/record_server.py http://127.0.0.1:8000 load.csv --out recordings/mine --engine vllm-0.32 \\
        --set max_num_seqs=256 --set max_num_batched_tokens=8192 --set max_model_len=32768 \\
        --gpu h200-sxm --model Qwen3-8B

Needs the extra `record` (httpx). The load is described in tools/recorder/load.py, the recording in docs/recordings.md,
the whole way in docs/record-your-server.md. Arrivals are open loop: a slow server does not slow the client down.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import httpx
except ImportError:
    raise SystemExit("error: tools/record_server.py needs httpx: pip install 'ttsim-des[record]'") from None

from recorder.client import Endpoint, Sample, drive
from recorder.command import add_load_options, make_parser, run
from recorder.load import read_load
from recorder.native import write_native
from ttsim_des.errors import EXIT_NOT_VALID, bad_input
from ttsim_des.recordings.native import read_native

LATE_S = 0.01
"""A request sent so much later than it was due is worth a word: the client itself was too slow."""


def main(argv: Sequence[str] | None = None) -> int:
    """Record; exit code 2 for bad input, 4 when no request was served."""
    parser = make_parser(__doc__)
    parser.add_argument("url", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("load", type=Path, help="CSV: arrival_s, prompt_tokens, output_tokens and more")
    parser.add_argument("--out", type=Path, required=True, help="the recording's directory; must not exist")
    parser.add_argument("--engine", required=True, help="engine file of the server's version, such as vllm-0.32")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--gpu", help="a bundled GPU's name")
    parser.add_argument("--model", help="a bundled model's name")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--kv-dtype", default="bf16")
    parser.add_argument("--served-model", help="the server's name of the model; the first that it lists")
    parser.add_argument("--vocabulary", type=int, default=1000, help="prompt tokens are drawn below this id")
    add_load_options(parser)
    parser.add_argument("--timeout-s", type=float, default=600.0, help="without a byte from the server")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args(argv)
    return run(record, arguments)


def record(arguments: argparse.Namespace) -> int:
    """Send the load and write what came back."""
    out: Path = arguments.out
    if out.exists():
        raise bad_input(f"{out} exists already", key="--out", expected="a new directory's name")
    queries = read_load(arguments.load, arguments.limit, arguments.speed)
    url = arguments.url.rstrip("/").removesuffix("/v1")
    model = arguments.served_model or _first_model(url)
    meta: dict[str, Any] = {
        "name": out.name,
        "engine": arguments.engine,
        "settings": dict(_setting(text) for text in arguments.settings),
        "tp": arguments.tp,
        "dtype": arguments.dtype,
        "kv_dtype": arguments.kv_dtype,
        "note": arguments.note,
    }
    meta |= {name: value for name in ("gpu", "model") if (value := getattr(arguments, name)) is not None}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder)
        _check_meta(draft, meta)
        endpoint = Endpoint(url, model, arguments.vocabulary, arguments.seed, arguments.timeout_s)
        samples = asyncio.run(drive(endpoint, queries, _progress))
        write_native(draft, samples, meta)
        _report(samples)
        if not any(sample.chunks for sample in samples):
            print("error: no request was served; nothing is written", file=sys.stderr)
            return EXIT_NOT_VALID
        read_native(draft)
        shutil.copytree(draft, out)
    print(f"written to {out}; see `ttsim-des validate {out}`")
    return 0


def _check_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write a recording of one made-up request and read it back, so that bad settings show before the load is sent."""
    from recorder.load import Query

    write_native(folder, [Sample(Query(0, 0.0, 1, 1), 0, 0.0, [(1.0, 1)], "finished")], meta)
    read_native(folder)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise bad_input(f"{text!r} is no setting", key="--set", expected="NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _first_model(url: str) -> str:
    try:
        reply = httpx.get(f"{url}/v1/models", timeout=10, trust_env=False)
        reply.raise_for_status()
        return str(reply.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        reason = f"no server answers at {url}/v1/models: {type(error).__name__}: {error}"
        raise bad_input(reason, key="URL", expected="the address of an OpenAI-compatible server") from None


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {of} queries", end="\n" if done == of else "", file=sys.stderr, flush=True)


def _report(samples: Sequence[Sample]) -> None:
    """How many came to which end, and how late the client was."""
    counts = Counter(sample.status for sample in samples)
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    errors = Counter(sample.error for sample in samples if sample.error)
    for error, count in errors.most_common(3):
        print(f"  {count} x {error}")
    first_s = samples[0].query.arrival_s
    lags = sorted(sample.sent_s - sample.query.arrival_s for sample in samples)
    if lags[-1] > LATE_S and first_s >= 0:
        print(f"sent late: median {lags[len(lags) // 2] * 1e3:.1f} ms, worst {lags[-1] * 1e3:.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
