"""Record vLLM from inside its process: every request and every engine step, in the layout of docs/conformance.md.

    python tools/record_vllm.py --engine-args '{"model": "Qwen/Qwen3-8B", "max_model_len": 8192}' load.csv --out mine
    python tools/record_vllm.py --tiny --clock cpu load.csv --out mine --sweep mine-sweep

Needs vLLM in the same environment. The load is described in tools/recorder/load.py. `--clock cpu` counts CPU seconds of
the engine's thread and skips idle time, which makes a run on a busy CPU machine repeatable; `--clock wall` (the
default) is real time. `--sweep DIR` records batches over a grid of sizes and contexts beside: what `ttsim-des validate
--steps-from DIR` fits step times to. On the CPU clock they run in the load's idle moments, spread over it, so that both
see the same machine; in real time only without a load. docs/record-your-server.md goes through it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import json
import os
import random
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # Before vllm is imported: the hooks must see the engine core.

from recorder.command import add_load_options, make_parser, run
from recorder.load import Query, read_load, token_ids
from recorder.watch import CpuClock, Log, StepWatch, WallClock, Watched
from ttsim_des.errors import bad_input

SWEEP_BATCHES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SWEEP_STEPS = 12
"""Decode steps of each batch of a sweep."""
SWEEP_REPEATS = 4
"""Of the smallest batch; larger ones have as many sequences in all, but each is run at least twice."""
_OWN = 1 << 40
"""Prompts of the sweep, apart from all that a load names."""
TINY = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 4094,
    "eos_token_id": 4095,
    "initializer_range": 0.02,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
}
"""A model of Qwen2's shape whose random weights (19 million) a CPU core steps through in some 20 ms."""


def main(argv: Sequence[str] | None = None) -> int:
    """Record; exit code 2 for bad input."""
    parser = make_parser(__doc__)
    parser.add_argument("load", type=Path, nargs="?", help="CSV: arrival_s, prompt_tokens, output_tokens and more")
    parser.add_argument("--out", type=Path, help="the recording's directory; must not exist")
    parser.add_argument("--sweep", type=Path, metavar="DIR", help="record batches over a grid into this directory")
    parser.add_argument("--sweep-contexts", default="64,256,1024", metavar="N,N,...", help="tokens, of that grid")
    parser.add_argument("--engine-args", default="{}", metavar="JSON", help="vLLM's EngineArgs")
    parser.add_argument("--tiny", action="store_true", help="a small model with random weights instead of `model`")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    add_load_options(parser)
    arguments = parser.parse_args(argv)
    return run(record, arguments)


def record(arguments: argparse.Namespace) -> int:
    """Build the engine, send load or sweep, write the recording."""
    for name in ("out", "sweep"):
        if (folder := getattr(arguments, name)) is not None and folder.exists():
            raise bad_input(f"{folder} exists already", key=f"--{name}", expected="a new directory's name")
    if (arguments.load is None) != (arguments.out is None) or (arguments.out is None and arguments.sweep is None):
        raise bad_input("give a load and --out, or --sweep, or all", key="LOAD")
    if arguments.load is not None and arguments.sweep is not None and arguments.clock == "wall":
        raise bad_input("a sweep beside a load would delay it", key="--sweep", expected="--clock cpu, or two runs")
    queries = [] if arguments.load is None else read_load(arguments.load, arguments.limit, arguments.speed)
    try:
        asked = json.loads(arguments.engine_args)
        contexts = [int(size) for size in arguments.sweep_contexts.split(",")]
    except ValueError as error:
        raise bad_input(f"{error}", key="--engine-args or --sweep-contexts", expected='{"model": ...}, N,N') from None
    if importlib.util.find_spec("vllm") is None:
        raise bad_input("vLLM is not installed in this environment", expected="the environment that serves with it")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tiny:
            (Path(folder) / "config.json").write_text(json.dumps(TINY))
            asked |= {"model": folder, "load_format": "dummy"}
        engine = Engine(asked, arguments.clock, arguments.seed)
        engine.serve(queries, engine.sweep_batches(contexts) if arguments.sweep is not None else [])
        if arguments.tiny:
            asked["model"] = "tiny"
        for out, log in ((arguments.out, engine.log), (arguments.sweep, engine.sweep_log)):
            if out is not None:
                write(out, engine, log, asked, arguments.clock)
                print(f"{len(log.requests)} requests, {len(log.steps)} steps, {log.clock():.1f} s; written to {out}")
    return 0


@dataclass(slots=True)
class _Cancel:
    due_s: float
    index: int


class Engine:
    """A vLLM engine in this process, its scheduler watched."""

    def __init__(self, asked: dict[str, Any], clock: str, seed: int) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._engine = LLMEngine.from_engine_args(EngineArgs(skip_tokenizer_init=True, **asked))
        self.core: Any = self._engine.engine_core.engine_core
        self.config: Any = self._engine.vllm_config
        self._vocabulary = self.config.model_config.get_vocab_size() - 2
        self._seed = seed
        self._warm_up()
        self.log, self.sweep_log = (Log(CpuClock() if clock == "cpu" else WallClock()) for _ in range(2))
        self._watch = StepWatch(self.core.scheduler, self.log, self._take_cancels)
        self._cancels: list[_Cancel] = []

    def _warm_up(self) -> None:
        """A prompt and a few decodes before the hooks are set: first calls compile, allocate and import."""
        self._send("warm-up", [1] * 100, 8)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self.core.scheduler.reset_prefix_cache()

    def _send(self, name: str, prompt: list[int], tokens: int) -> None:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)

    def serve(self, queries: Sequence[Query], sweep: Sequence[Sequence[Query]]) -> None:
        """Send queries when they are due, between steps, and run until all are done.

        Batches of `sweep` run in idle moments, as many as keep it level with the queries, and on a clock of their own.
        """
        pending, batches = deque(queries), deque(sweep)
        clock = self.log.clock
        while pending or batches or self._engine.has_unfinished_requests():
            if not self._engine.has_unfinished_requests():
                while batches and len(batches) * len(queries) >= len(sweep) * len(pending):
                    self._run_aside(batches.popleft())
                if pending:
                    clock.skip_to(pending[0].arrival_s)
            now_s = clock()
            while pending and pending[0].arrival_s <= now_s:
                self._add(pending.popleft(), now_s)
            self._take_cancels()
            if self._engine.has_unfinished_requests():
                self._step()

    def _run_aside(self, batch: Sequence[Query]) -> None:
        """A batch of the sweep, from an idle engine to an idle engine."""
        self._watch.log = self.sweep_log
        now_s = self.sweep_log.clock()
        for query in batch:
            self._add(replace(query, arrival_s=now_s), now_s)
        while self._engine.has_unfinished_requests():
            self._step()
        self._watch.log = self.log

    def _step(self) -> None:
        with self._watch.log.clock.stepping():
            self._engine.step()

    def _add(self, query: Query, now_s: float) -> None:
        prompt = token_ids(query, self._vocabulary, self._seed)
        for sample in range(query.samples):
            index = len(self._watch.log.requests)
            several = query.samples > 1
            fixed: dict[str, Any] = {
                "id": index,
                "rid": f"r{query.index}s{sample}" if several else f"r{query.index}",
                "group": query.index if several else f"r{query.index}",
                "parent": None,
                "level": 0,
                "sample": sample,
                "arrival_s": query.arrival_s,
                "added_s": round(now_s, 6),
                "output_tokens_req": query.output_tokens,
            }
            if query.prompt_id is not None:
                fixed["prompt_id"] = query.prompt_id
            if query.cancel_s is not None:
                fixed["cancel_s"] = query.arrival_s + query.cancel_s
                self._cancels.append(_Cancel(fixed["cancel_s"], index))
            self._watch.expect(Watched(fixed, query.prompt_tokens))
            self._send(self._name(fixed), prompt, query.output_tokens)

    def _name(self, fixed: dict[str, Any]) -> str:
        """A request's name in the engine: those of the sweep must not meet those of the load."""
        return f"{'load' if self._watch.log is self.log else 'sweep'}-{fixed['rid']}"

    def _take_cancels(self) -> None:
        """Abort what its client has given up by now."""
        now_s = self.log.clock()
        for cancel in [each for each in self._cancels if each.due_s <= now_s]:
            self._cancels.remove(cancel)
            request = self.log.requests[cancel.index]
            if request.finish_s is None:
                self._engine.abort_request([self._name(request.fixed)])
                request.finish_reason = "abort"
                request.fixed["abort_s"] = round(now_s, 6)

    def sweep_batches(self, contexts: Sequence[int]) -> list[list[Query]]:
        """Batches of all sizes over these contexts, in an order drawn at random; lengths are spread a little.

        At most as many tokens as the KV cache holds without preemption.
        """
        scheduler, draw = self.core.scheduler, random.Random(self._seed)
        blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
        longest = self.config.model_config.max_model_len - SWEEP_STEPS
        shapes = [
            (batch, context)
            for batch in SWEEP_BATCHES
            for context in contexts
            for _ in range(max(2, SWEEP_REPEATS // batch))
            if batch <= scheduler.max_num_running_reqs
            and batch * (1.2 * context + SWEEP_STEPS + scheduler.block_size) < blocks * scheduler.block_size
        ]
        draw.shuffle(shapes)
        number, batches = 0, []
        for batch, context in shapes:
            queries = []
            for _ in range(batch):
                tokens = max(1, round(context * draw.uniform(0.8, 1.2)))
                queries.append(Query(number, 0.0, min(tokens, longest), SWEEP_STEPS, prompt_id=_OWN + number))
                number += 1
            batches.append(queries)
        return batches


def write(out: Path, engine: Engine, log: Log, asked: dict[str, Any], clock: str) -> None:
    """Write requests, steps and meta, the directory at once."""
    import torch
    import vllm

    scheduler, config = engine.core.scheduler, engine.config
    attributes = (
        *("max_num_running_reqs", "max_num_scheduled_tokens", "num_spec_tokens", "num_lookahead_tokens"),
        *("block_size", "scheduler_reserve_full_isl"),
    )
    meta = {
        "clock": clock,
        "engine": f"vllm {vllm.__version__}",
        "torch": torch.__version__,
        "engine_args": {**asked, "max_model_len": config.model_config.max_model_len},
        "scheduler_config": _plain(config.scheduler_config),
        "cache_config": _plain(config.cache_config),
        "scheduler_class": type(scheduler).__name__,
        "scheduler_attrs": {
            **{name: getattr(scheduler, name) for name in attributes},
            "watermark_blocks": getattr(scheduler.kv_cache_manager, "watermark_blocks", 0),
            "num_gpu_blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks,
        },
        "model_config": {
            name: value
            for name, value in config.model_config.hf_config.to_dict().items()
            if isinstance(value, int | float | str | bool) and not name.startswith("_")
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / "recording"
        draft.mkdir()
        (draft / "meta.json").write_text(json.dumps(meta, indent=1, default=str) + "\n", encoding="utf-8")
        with gzip.open(draft / "requests.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(request.row()) + "\n" for request in log.requests)
        with gzip.open(draft / "steps.csv.gz", "wt", newline="") as stream:
            writer = csv.DictWriter(stream, list(log.steps[0]))
            writer.writeheader()
            writer.writerows(log.steps)
        draft.rename(out)


def _plain(config: Any) -> dict[str, Any]:
    """The settings of a vLLM config that are numbers, words or flags."""
    return {
        name: value
        for name, value in vars(config).items()
        if (value is None or isinstance(value, int | float | str | bool)) and not name.startswith("_")
    }


if __name__ == "__main__":
    sys.exit(main())
