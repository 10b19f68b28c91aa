"""Recordings of a real vLLM made in-process: every request and every engine step (docs/conformance.md has the columns).

    requests<SUFFIX>.jsonl.gz  steps<SUFFIX>.csv.gz  meta<SUFFIX>.json

A folder may hold several, told apart by their suffix. Golden ones ran the real scheduler with a formula for the time of
the model.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.request import PromptSegment
from ttsim_des.engine.speculation import SpeculationConfig, TabledDrafting
from ttsim_des.errors import bad_input
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.shape import PrefillChunk, StepShape
from ttsim_des.recordings.recording import RecordedRequest, RecordedStep, Recording
from ttsim_des.units import NS_PER_S, s_to_ns

csv.field_size_limit(1 << 30)
_FORMULA = {
    "a": "constant_ns",
    "tok": "per_token_ns",
    "dctx": "per_decode_ctx_token_ns",
    "pqk": "per_prefill_qk_pair_ns",
}
"""What the coefficients of a golden run's formula multiply."""


@dataclass(frozen=True)
class RunFiles:
    """One recorded run as it lies on disk."""

    name: str
    meta: dict[str, Any]
    requests: list[dict[str, Any]]
    steps: list[dict[str, str]]

    @property
    def is_golden(self) -> bool:
        """Whether step times follow a formula instead of a measurement."""
        return "golden" in self.meta

    def time_ns(self, step: Mapping[str, str], which: str) -> int:
        """`which` ("start" or "end") of a step."""
        return s_to_ns(float(step[f"dev_{which}_s" if self.is_golden else f"{which}_s"]))


def is_vllm_cpu(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return any(folder.glob("meta*.json")) and any(folder.glob("steps*.csv.gz"))


def read_runs(folder: Path) -> Iterator[RunFiles]:
    """All runs in a folder, by name; InputError where a file is missing or damaged."""
    metas = sorted(folder.glob("meta*.json"))
    if not metas:
        raise bad_input("no meta*.json here", where=str(folder), expected="the folder of a recording")
    for meta_path in metas:
        suffix = meta_path.stem.removeprefix("meta")
        try:
            with gzip.open(folder / f"requests{suffix}.jsonl.gz", "rt") as lines:
                requests = [json.loads(line) for line in lines]
            with gzip.open(folder / f"steps{suffix}.csv.gz", "rt") as lines:
                steps = list(csv.DictReader(lines))
            meta = json.loads(meta_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, EOFError) as error:
            raise bad_input(f"this recording cannot be read: {error}", where=str(meta_path)) from None
        yield RunFiles(f"{folder.resolve().parent.name}/{folder.name}{suffix}", meta, requests, steps)


def engine_config(meta: Mapping[str, Any]) -> EngineConfig:
    """The settings that the recorded engine had."""
    attrs, cache, scheduler = meta["scheduler_attrs"], meta["cache_config"], meta["scheduler_config"]
    return EngineConfig(
        num_gpu_blocks=attrs["num_gpu_blocks"],
        block_size=attrs["block_size"],
        max_num_seqs=attrs["max_num_running_reqs"],
        max_num_batched_tokens=attrs["max_num_scheduled_tokens"],
        max_model_len=meta["engine_args"]["max_model_len"],
        enable_prefix_caching=cache["enable_prefix_caching"],
        enable_chunked_prefill=scheduler["enable_chunked_prefill"],
        async_scheduling=scheduler["async_scheduling"],
        scheduling_policy=scheduler["policy"],
        long_prefill_token_threshold=scheduler["long_prefill_token_threshold"],
        scheduler_reserve_full_isl=attrs["scheduler_reserve_full_isl"],
        watermark_blocks=attrs["watermark_blocks"],
        speculation=_speculation(meta),
    )


def _speculation(meta: Mapping[str, Any]) -> SpeculationConfig | None:
    """How the recorded engine speculated."""
    asked = meta["engine_args"].get("speculative_config")
    if asked is None:
        return None
    slots = 1 if asked["method"] == "draft_model" else 0
    return SpeculationConfig(asked["num_speculative_tokens"], meta["scheduler_attrs"]["num_lookahead_tokens"], slots)


def drafting(run: RunFiles, config: EngineConfig) -> dict[int, TabledDrafting]:
    """What was proposed and accepted for each request, by output position; nothing without speculation.

    Deliveries say how many tokens came at once; what a real n-gram drafter had to offer stands in the schedule.
    """
    if config.speculation is None:
        return {}
    by_content = run.meta["engine_args"]["speculative_config"]["method"] == "ngram" and not run.is_golden
    most = config.speculation.num_speculative_tokens
    offered = _offered(run) if by_content else {}
    found = {}
    for row in run.requests:
        accepts, known = bytearray(row["output_tokens_req"] + most + 1), 0
        for _, tokens in row["chunks"]:
            accepts[known] = tokens - 1
            known += tokens
        proposes = None
        if by_content:
            proposes = bytes(offered.get((row["id"], position), 0) for position in range(len(accepts)))
        found[row["id"]] = TabledDrafting(bytes(accepts), proposes)
    return found


def _offered(run: RunFiles) -> dict[tuple[int, int], int]:
    """(request, output tokens known) -> drafts that were then verified; for synchronous scheduling."""
    return {(request, known): drafts for request, known, drafts, _ in _sampled(run)}


def judged_steps(run: RunFiles) -> list[tuple[int, int, int, int]]:
    """Steps of a request behind its prompt: (request, output tokens known, drafts, accepted); nothing without drafts.

    The last step of a request is left out: what was accepted beyond its cap was not recorded.
    """
    ends = {row["id"]: row["output_tokens"] for row in run.requests}
    steps = [
        (request, known, drafts, tokens - 1)
        for request, known, drafts, tokens in _sampled(run)
        if known and known + tokens < ends[request]
    ]
    return steps if any(drafts for _, _, drafts, _ in steps) else []


def _sampled(run: RunFiles) -> Iterator[tuple[int, int, int, int]]:
    """Every step that brought a request tokens: (request, output tokens known, drafts, tokens)."""
    rows = {row["id"]: row for row in run.requests}
    deliveries = {request: iter(row["chunks"]) for request, row in rows.items()}
    outputs = dict.fromkeys(rows, 0)
    for step in run.steps:
        for entry in step["sched"].split():
            request, tokens, before, drafts = map(int, entry.split(":")[:4])
            if before + tokens - drafts < rows[request]["prompt_tokens"] + outputs[request]:
                continue
            known, tokens = outputs[request], next(deliveries[request])[1]
            yield request, known, drafts, tokens
            outputs[request] = known + tokens


def host_overhead(meta: Mapping[str, Any]) -> HostOverhead:
    """Host time of a golden run; none where it is part of the measured steps."""
    host = meta.get("golden", {}).get("host") or {}
    return HostOverhead(
        schedule_step_ns=s_to_ns(host.get("h_sched", 0.0)), update_step_ns=s_to_ns(host.get("h_upd", 0.0))
    )


class PromptOwners:
    """Who shares which tokens: there are no token ids in a recording, but a rule that names each position's owner."""

    def __init__(self, requests: Sequence[Mapping[str, Any]]) -> None:
        self._rows = {row["id"]: row for row in requests}
        self._owners: dict[Any, int] = {}

    def prompt(self, request_id: int) -> tuple[PromptSegment, ...]:
        """The prompt of a request; a child's begins with all of its parent's text."""
        row = self._rows[request_id]
        if row["parent"] is not None:
            parent = self._rows[row["parent"]]
            text = parent["prompt_tokens"] + parent["output_tokens"]
            segments = (*self.prompt(row["parent"]), (-1 - row["parent"], text))
            extra = self._owner(("extra", row["parent"]))
            return (*segments, (extra, row["prompt_tokens"])) if row["prompt_tokens"] > text else segments
        if row.get("prompt_id") is not None:
            owner = self._owner(("prompt", row["prompt_id"]))
        elif row["rid"] != row["group"]:
            owner = self._owner(("group", row["group"]))
        else:
            owner = self._owner(("request", row["id"]))
        return ((owner, row["prompt_tokens"]),)

    def _owner(self, key: tuple[str, Any]) -> int:
        return self._owners.setdefault(key, len(self._owners))


def as_recording(run: RunFiles) -> Recording:
    """A run for validation; InputError for one with cancels, whose outputs are not all the requests'."""
    if any(row.get("abort_s") is not None or row["finish_s"] is None for row in run.requests):
        raise bad_input("requests of this recording were cancelled; tools/conformance.py replays it", where=run.name)
    owners, config = PromptOwners(run.requests), engine_config(run.meta)
    luck = drafting(run, config)
    zero_s = min(row["arrival_s"] for row in run.requests)
    requests = []
    for row in sorted(run.requests, key=lambda row: int(row["id"])):
        times_s = tuple(time_s - zero_s for time_s, _ in row["chunks"])
        requests.append(
            RecordedRequest(
                name=str(row["id"]),
                group=str(row["group"]),
                arrival_s=row["arrival_s"] - zero_s,
                first_token_s=times_s[0],
                finish_s=times_s[-1],
                prompt_tokens=row["prompt_tokens"],
                output_tokens=row["output_tokens"],
                prompt=owners.prompt(row["id"]),
                token_times_s=times_s,
                preemptions=row["preemptions"],
                cached_tokens=row["cached_tokens"] or 0,
                priority=row.get("priority") or 0,
                parent=None if row["parent"] is None else str(row["parent"]),
                engine_id=row["rid"],
                drafting=luck.get(row["id"]),
            )
        )
    formula_ns = None
    if run.is_golden:
        golden = run.meta["golden"]
        formula_ns = {argument: golden["coef"][name] * NS_PER_S for name, argument in _FORMULA.items()}
        formula_ns["constant_ns"] += (golden.get("k_spec") or 0) * golden["coef"].get("spec_k", 0.0) * NS_PER_S
    return Recording(
        run.name,
        "vllm-0.32",
        requests,
        config,
        host_overhead(run.meta),
        None,
        steps=recorded_steps(run),
        formula_ns=formula_ns,
    )


def recorded_steps(run: RunFiles) -> list[RecordedStep]:
    """Each step with its shape, from who was scheduled with how many tokens on top of how many."""
    steps = []
    for step in run.steps:
        contexts, chunks, drafts = [], [], 0
        for entry in step["sched"].split():
            _, new, before, drafted, kind = entry.rsplit(":", 4)
            if kind == "d":
                contexts.append(int(before) + int(new))
                drafts += int(drafted)
            else:
                chunks.append(PrefillChunk(int(new), int(before)))
        rows = len(contexts) + drafts + len(chunks)
        shape = StepShape(len(contexts), sum(contexts), max(contexts, default=0), tuple(chunks), rows, drafts)
        steps.append(RecordedStep(run.time_ns(step, "start"), run.time_ns(step, "end"), shape))
    return steps
