"""A recording as everything else sees it, whatever its layout on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ttsim_des.engine.config import EngineConfig
from ttsim_des.engine.request import PromptSegment
from ttsim_des.engine.speculation import Drafting
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.layers import LayerTables
from ttsim_des.latency.shape import StepShape
from ttsim_des.latency.unequal import StreamRate


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as it was served; times in seconds since the first true arrival. `name` is unique.

    `token_times_s` where every delivery was recorded, else empty; with speculation a delivery may bring several tokens.
    `group`: requests of one query. `drafting`: what became of its drafts, where the engine speculated.
    """

    name: str
    group: str
    arrival_s: float
    first_token_s: float
    finish_s: float
    prompt_tokens: int
    output_tokens: int
    prompt: tuple[PromptSegment, ...]
    token_times_s: tuple[float, ...] = ()
    preemptions: int | None = None
    cached_tokens: int | None = None
    priority: int = 0
    engine_id: str = ""
    """What the engine called it; breaks ties between equal priorities and arrivals."""
    parent: str | None = None
    """A request whose end sends this one (its text is the beginning of this one's prompt)."""
    drafting: Drafting | None = None


class RecordedStep(NamedTuple):
    """One engine step: when it ran, in nanoseconds of the recording's clock, and what it computed."""

    start_ns: int
    end_ns: int
    shape: StepShape


@dataclass(frozen=True, slots=True)
class MeasuredProfile:
    """The kernel profile that lies beside a recording."""

    tables: LayerTables
    gpu: str
    model: str
    tp: int
    stream: StreamRate | None
    """How one thread block reads KV caches, where batches of unequal contexts were measured."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What served a recording, where that is a GPU and a model that are bundled: its kernels give the step times."""

    gpu: str
    model: str
    tp: int
    dtype: str
    kv_dtype: str


@dataclass(frozen=True, slots=True)
class Recording:
    """A run of a real engine. `derived` says which parameters were not recorded and where their values come from.

    How long a step takes is told by `formula_ns` (a golden run), `profile` (measured beside it) or `deployed`.
    """

    name: str
    engine: str
    requests: Sequence[RecordedRequest]
    config: EngineConfig
    host: HostOverhead
    profile: MeasuredProfile | None
    derived: dict[str, str] = field(default_factory=dict)
    steps: Sequence[RecordedStep] = ()
    formula_ns: Mapping[str, float] | None = None
    """Arguments of `AffineStepModel`."""
    deployed: Deployed | None = None
