"""The engine file: rules, defaults, memory and host time of one version of an engine."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttsim_des import assets
from ttsim_des.engine.memory import MemoryRules
from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.latency.host import HostOverhead
from ttsim_des.remembered import remembered
from ttsim_des.units import us_to_ns

SCHEMA = 1


class _Table(BaseModel):
    """A table of the file; keys that this version does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineDefaults(_Table):
    """What holds where the scenario says nothing."""

    block_size: int
    gpu_memory_utilization: float
    enable_prefix_caching: bool
    enable_chunked_prefill: bool
    async_scheduling: bool
    scheduling_policy: Literal["fcfs", "priority"]
    long_prefill_token_threshold: int
    scheduler_reserve_full_isl: bool
    watermark: float
    source: str


class BatchDefaults(_Table):
    """Batch limits for GPUs with at least `min_memory_gib` whose name has none of `except_devices` in it."""

    min_memory_gib: float
    except_devices: tuple[str, ...]
    max_num_seqs: int
    max_num_batched_tokens: int
    source: str


class _Rules(_Table):
    free_unhashed_first: bool


class _Graphs(_Table):
    max_tokens: int
    source: str


class _Memory(_Table):
    activation_intermediates: float = Field(ge=0)
    activation_hiddens: float = Field(ge=0)
    sampler_bytes_per_logit: float = Field(ge=0)
    other_gib: float = Field(ge=0)
    other_tp_gib: float = Field(ge=0)
    graph_mib_per_layer: float = Field(ge=0)
    graphs_counted: bool
    source: str


class _Host(_Table):
    schedule_step_us: float = Field(ge=0)
    schedule_sequence_us: float = Field(ge=0)
    update_step_us: float = Field(ge=0)
    update_sequence_us: float = Field(ge=0)
    source: str


class _Frontend(_Table):
    request_us: float = Field(ge=0)


class _Device(_Table):
    step_gap_us: float = Field(ge=0)


class _EngineToml(_Table):
    schema_version: int = Field(alias="schema")
    engine: str
    version: str
    rules: _Rules
    defaults: EngineDefaults
    batch_defaults: tuple[BatchDefaults, ...] = Field(min_length=1)
    graphs: _Graphs
    memory: _Memory
    host: _Host
    frontend: _Frontend
    device: _Device


@dataclass(frozen=True, slots=True)
class EngineFile:
    """One engine version, its times in nanoseconds."""

    name: str
    version: str
    free_unhashed_first: bool
    defaults: EngineDefaults
    batch_defaults: tuple[BatchDefaults, ...]
    graph_tokens: int
    memory: MemoryRules
    memory_source: str
    host: HostOverhead
    host_source: str
    step_gap_ns: int

    def batch_limits(self, device: str, memory_gib: float) -> BatchDefaults:
        """The batch limits for a GPU; the last entry when none fits."""
        for entry in self.batch_defaults:
            if memory_gib >= entry.min_memory_gib and not any(word in device for word in entry.except_devices):
                return entry
        return self.batch_defaults[-1]


def load_engine_file(name: str) -> EngineFile:
    """The bundled engine file `name`; InputError (key `cluster.engine`) when there is none."""
    known = assets.names("engines")
    if name not in known:
        raise bad_input(
            f"unknown engine {name!r}",
            key="cluster.engine",
            expected=f"one of {', '.join(known)}",
            nearest=nearest_name(name, known),
        )
    return read_engine_file(assets.root("profiles") / "engines" / f"{name}.toml")


@remembered
def read_engine_file(path: Path) -> EngineFile:
    """The engine file at `path`; InputError naming it and what is wrong."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad_input(f"engine file {path} cannot be read: {error}", key="cluster.engine") from None
    schema = table.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise bad_input(
            f"engine file {path} has schema version {schema}, newer than this program understands",
            key="cluster.engine",
            expected=f"{SCHEMA} or older",
        )
    try:
        read = _EngineToml.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise bad_input(f"engine file {path}: {where}: {first['msg']}", key="cluster.engine") from None
    host = read.host
    return EngineFile(
        name=path.stem,
        version=read.version,
        free_unhashed_first=read.rules.free_unhashed_first,
        defaults=read.defaults,
        batch_defaults=read.batch_defaults,
        graph_tokens=read.graphs.max_tokens,
        memory=MemoryRules(**read.memory.model_dump(exclude={"source"})),
        memory_source=read.memory.source,
        host=HostOverhead(
            schedule_step_ns=us_to_ns(host.schedule_step_us),
            schedule_sequence_ns=us_to_ns(host.schedule_sequence_us),
            update_step_ns=us_to_ns(host.update_step_us),
            update_sequence_ns=us_to_ns(host.update_sequence_us),
            request_ns=us_to_ns(read.frontend.request_us),
        ),
        host_source=host.source,
        step_gap_ns=us_to_ns(read.device.step_gap_us),
    )
