"""The layout that our own recorders write (docs/recordings.md has every field).

    recording.json  requests.jsonl  [steps.csv]

Times are seconds on one clock, of any origin.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttsim_des import assets
from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.engine_file import load_engine_file
from ttsim_des.engine.memory import derive_blocks
from ttsim_des.engine.request import PromptSegment
from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.latency.geometry import load_geometry
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.profile import load_profile
from ttsim_des.latency.shape import PrefillChunk, StepShape
from ttsim_des.recordings.recording import Deployed, RecordedRequest, RecordedStep, Recording
from ttsim_des.units import s_to_ns

SCHEMA = 1
META = "recording.json"
STEP_COLUMNS = ("start_s", "end_s", "decode_seqs", "decode_ctx_sum", "decode_ctx_max", "prefill_chunks")
OWN_PROMPTS = 1 << 40
"""Owners of prompts that say nothing of whom they share text with: beyond all that recorders give."""

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Engine(_Table):
    """Settings by vLLM's names; what is absent is the engine file's default."""

    num_gpu_blocks: Positive | None = None
    block_size: Positive | None = None
    max_num_seqs: Positive
    max_num_batched_tokens: Positive
    max_model_len: Positive
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    async_scheduling: bool | None = None
    scheduling_policy: Literal["fcfs", "priority"] | None = None
    long_prefill_token_threshold: Count | None = None
    scheduler_reserve_full_isl: bool | None = None


class _Meta(_Table):
    schema_version: Annotated[int, Field(alias="schema", le=SCHEMA)]
    name: str
    engine: str
    """The engine file that describes the version, such as vllm-0.32."""
    settings: _Engine
    gpu: str | None = None
    model: str | None = None
    tp: Positive = 1
    dtype: Literal["bf16", "fp8"] = "bf16"
    kv_dtype: Literal["bf16", "fp8"] = "bf16"
    note: str = ""


class _Request(_Table):
    id: str
    query: str | None = None
    arrival_s: float
    first_token_s: float | None = None
    finish_s: float | None = None
    prompt_tokens: Positive
    output_tokens: Count
    prompt: tuple[tuple[Count, Positive], ...] | None = None
    token_times_s: tuple[float, ...] = ()
    preemptions: Count | None = None
    cached_tokens: Count | None = None
    priority: int = 0
    parent: str | None = None
    status: Literal["finished", "cancelled", "failed"] = "finished"
    asked_tokens: Positive | None = None
    cancel_s: float | None = None
    error: str = ""


def is_native(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return (folder / META).is_file()


def read_native(folder: Path) -> Recording:
    """Read a recording; InputError with the file, the line and what was expected there."""
    meta = _meta(folder / META)
    engine = load_engine_file(meta.engine)
    deployed = None
    if meta.gpu in assets.names("gpus") and meta.model in assets.names("models"):
        assert meta.gpu is not None
        assert meta.model is not None
        deployed = Deployed(meta.gpu, meta.model, meta.tp, meta.dtype, meta.kv_dtype)
    settings, defaults, derived = meta.settings, engine.defaults, {}

    def take(name: str) -> Any:
        """A setting, or the engine file's default."""
        given = getattr(settings, name)
        return getattr(defaults, name) if given is None else given

    blocks = settings.num_gpu_blocks
    if blocks is None:
        blocks, derived["num_gpu_blocks"] = _derived_blocks(folder, meta, deployed)
    config = EngineConfig(
        num_gpu_blocks=blocks,
        block_size=take("block_size"),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=settings.max_model_len,
        enable_prefix_caching=take("enable_prefix_caching"),
        enable_chunked_prefill=take("enable_chunked_prefill"),
        async_scheduling=take("async_scheduling"),
        scheduling_policy=take("scheduling_policy"),
        long_prefill_token_threshold=take("long_prefill_token_threshold"),
        scheduler_reserve_full_isl=take("scheduler_reserve_full_isl"),
        free_unhashed_first=engine.free_unhashed_first,
    )
    zero_s, requests, incomplete = _requests(folder / "requests.jsonl")
    derived |= incomplete
    return Recording(
        name=meta.name,
        engine=meta.engine,
        requests=requests,
        config=config,
        host=HostOverhead() if deployed is None else engine.host,
        profile=None,
        derived=derived,
        steps=_steps(folder / "steps.csv", zero_s),
        deployed=deployed,
    )


def _meta(path: Path) -> _Meta:
    try:
        return _Meta.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise bad_input(f"this file of the recording cannot be read: {error.strerror}", where=str(path)) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise bad_input(_first(error), where=str(path), expected="docs/recordings.md has every field") from None


def _first(error: Exception) -> str:
    """What is wrong first, and where inside the document."""
    if not isinstance(error, ValidationError):
        return str(error)
    detail = error.errors()[0]
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}" if place else str(detail["msg"])


def _derived_blocks(folder: Path, meta: _Meta, deployed: Deployed | None) -> tuple[int, str]:
    if deployed is None:
        raise bad_input(
            "settings.num_gpu_blocks was not recorded, and GPU and model are none that are bundled",
            where=str(folder / META),
            expected="the number in the engine's start-up log",
        )
    rules, profile = load_engine_file(meta.engine), load_profile(deployed.gpu)
    utilization = meta.settings.gpu_memory_utilization or rules.defaults.gpu_memory_utilization
    memory = derive_blocks(
        load_geometry(deployed.model, Path()),
        rules.memory,
        memory_gib=profile.meta.memory_gib,
        utilization=utilization,
        tp=deployed.tp,
        dtype=deployed.dtype,
        kv_dtype=deployed.kv_dtype,
        block_size=meta.settings.block_size or rules.defaults.block_size,
        max_num_seqs=meta.settings.max_num_seqs,
        max_num_batched_tokens=meta.settings.max_num_batched_tokens,
        num_gpu_blocks=None,
    )
    return memory.num_gpu_blocks, memory.explained(rules.name)


def _requests(path: Path) -> tuple[float, list[RecordedRequest], dict[str, str]]:
    """The first arrival, all requests with tokens from it on, by arrival, and what became of the others."""
    rows, left_out = _served(path)
    if not rows:
        raise bad_input("there is no request", where=str(path))
    names = {row.id for row in rows}
    if len(names) < len(rows):
        raise bad_input("two requests have the same id", where=str(path))
    for row in rows:
        if row.parent is not None and row.parent not in names:
            raise bad_input(
                f"request {row.id} has an unknown parent {row.parent!r}",
                where=str(path),
                nearest=nearest_name(row.parent, names),
            )
    zero_s = min(row.arrival_s for row in rows)
    by_arrival = sorted(rows, key=lambda row: (row.arrival_s, row.id))
    requests = [_recorded(row, index, zero_s) for index, row in enumerate(by_arrival)]
    incomplete = {}
    if left_out:
        incomplete["left out"] = ", ".join(f"{number} {status}" for status, number in left_out.items())
    if cut := sum(row.status == "cancelled" for row in rows):
        incomplete["cancelled"] = f"{cut} requests replayed as ending by themselves after the tokens that they had"
    return zero_s, requests, incomplete


def _served(path: Path) -> tuple[list[_Request], Counter[str]]:
    """The requests that have tokens, in order of their lines, and how many others there are of each status."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise bad_input(f"this file of the recording cannot be read: {error}", where=str(path)) from None
    rows: list[_Request] = []
    left_out = Counter[str]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = _Request.model_validate_json(line)
        except ValidationError as error:
            raise bad_input(_first(error), where=where, expected="docs/recordings.md has every field") from None
        if row.status != "finished" and (row.status == "failed" or not row.output_tokens):
            left_out[row.status] += 1
            continue
        _check_served(row, where)
        rows.append(row)
    return rows, left_out


def _check_served(row: _Request, where: str) -> None:
    """InputError where the fields of a request that was served contradict each other."""
    if row.first_token_s is None or row.finish_s is None or not row.output_tokens:
        raise bad_input(
            "a request that was served needs first_token_s, finish_s and output_tokens",
            where=where,
            expected='or "status": "failed"',
        )
    if not row.arrival_s <= row.first_token_s <= row.finish_s:
        raise bad_input("times run backwards", where=where, expected="arrival_s <= first_token_s <= finish_s")
    if row.token_times_s and len(row.token_times_s) != row.output_tokens:
        raise bad_input(
            f"{len(row.token_times_s)} token_times_s of {row.output_tokens} output tokens",
            where=where,
            expected="one for each, or none",
        )
    if row.prompt and row.prompt[-1][1] != row.prompt_tokens:
        raise bad_input(
            f"prompt ends at {row.prompt[-1][1]}, prompt_tokens = {row.prompt_tokens}",
            where=where,
            expected="the last end to be prompt_tokens",
        )


def _recorded(row: _Request, index: int, zero_s: float) -> RecordedRequest:
    """A served request, `index` by arrival, with times from `zero_s` on."""
    prompt: tuple[PromptSegment, ...] = row.prompt or ((OWN_PROMPTS + index, row.prompt_tokens),)
    return RecordedRequest(
        name=row.id,
        group=row.query or row.id,
        arrival_s=row.arrival_s - zero_s,
        first_token_s=(row.first_token_s or 0.0) - zero_s,
        finish_s=(row.finish_s or 0.0) - zero_s,
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        prompt=prompt,
        token_times_s=tuple(time_s - zero_s for time_s in row.token_times_s),
        preemptions=row.preemptions,
        cached_tokens=row.cached_tokens,
        priority=row.priority,
        engine_id=row.id,
        parent=row.parent,
    )


def _steps(path: Path, zero_s: float) -> list[RecordedStep]:
    """The steps, where they were recorded."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in STEP_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise bad_input(f"there is no column {missing[0]}", where=f"{path}:1", expected=", ".join(STEP_COLUMNS))
        steps = []
        for row in reader:
            try:
                steps.append(_step(row, zero_s))
            except ValueError as error:
                raise bad_input(f"{error}", where=f"{path}:{reader.line_num}", expected="numbers") from None
    return steps


def _step(row: Mapping[str, str], zero_s: float) -> RecordedStep:
    chunks: Sequence[PrefillChunk] = [
        PrefillChunk(int(new), int(computed))
        for new, computed in (part.split(":") for part in row["prefill_chunks"].split())
    ]
    seqs = int(row["decode_seqs"])
    shape = StepShape(seqs, int(row["decode_ctx_sum"]), int(row["decode_ctx_max"]), tuple(chunks), seqs + len(chunks))
    return RecordedStep(s_to_ns(float(row["start_s"]) - zero_s), s_to_ns(float(row["end_s"]) - zero_s), shape)
