"""One validation: read a recording, replay it, compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ttsim_des.engine.replica import Stepping
from ttsim_des.errors import bad_input
from ttsim_des.latency.calibration import UNFITTED, Calibration
from ttsim_des.latency.layers import Link, Terms
from ttsim_des.latency.shape import StepModel
from ttsim_des.recordings.read import read_recordings, read_steps
from ttsim_des.recordings.recording import Recording
from ttsim_des.recordings.step_times import step_errors
from ttsim_des.validation.compare import compare
from ttsim_des.validation.models import RecordedDurations, fitted_model, formula_model, kernel_model, profile_model
from ttsim_des.validation.replay import Replayed, replay

ALL_TERMS = Terms()
STATED_LINK = Link(20.0, 16e9)
"""LLMServingSim's configured value for two PCIe cards."""

Forced = Literal["durations", "schedule"]


@dataclass(frozen=True, slots=True)
class Variant:
    """How to replay; the defaults are what the recorded engine did."""

    terms: Terms = ALL_TERMS
    link: Link = STATED_LINK
    synchronous: bool = False
    no_prefix_caching: bool = False
    steps_from: Path | None = None
    forced: Forced | None = None
    """Teacher-forced: each step takes its recorded duration, or the recorded steps are all that is simulated."""
    calibration: Calibration = UNFITTED


@dataclass(frozen=True, slots=True)
class Validation:
    """What came of one recording; nothing was replayed where the schedule was forced."""

    name: str
    metrics: dict[str, dict[str, float | None]]
    parameters: dict[str, Any]
    recording: Recording
    replayed: Replayed | None


def validate(folder: Path, variant: Variant | None = None) -> Iterator[Validation]:
    """Validate every recording in a folder; InputError for what cannot be read or replayed."""
    variant = variant or Variant()
    for recording in read_recordings(folder):
        if variant.forced is not None and not recording.steps:
            raise bad_input("the steps of this recording were not recorded", key="--forced", where=str(folder))
        model, parameters = _step_model(recording, variant)
        if variant.forced == "schedule":
            yield Validation(recording.name, step_errors(model, recording.steps), parameters, recording, None)
            continue
        result = _validate(recording, model, parameters, variant)
        if recording.steps and variant.forced is None:
            result.metrics.update(step_errors(model, recording.steps))
        yield result


def _step_model(recording: Recording, variant: Variant) -> tuple[StepModel, dict[str, Any]]:
    """What says how long a step takes, and what it took from where."""
    scale = variant.calibration.kernel_scale
    if variant.forced == "durations":
        model = RecordedDurations([step.end_ns - step.start_ns for step in recording.steps])
        return model, {"step times": "as recorded, step by step: what remains is the scheduler's error"}
    if variant.steps_from is not None:
        if recording.profile is not None:
            raise bad_input("this recording has a kernel profile of its own", key="--steps-from", where=recording.name)
        return fitted_model(read_steps(variant.steps_from), variant.steps_from.name, scale)
    if recording.formula_ns is not None:
        return formula_model(recording.formula_ns, scale)
    if recording.profile is not None:
        return profile_model(recording, variant.terms, variant.link, scale)
    if recording.deployed is not None:
        return kernel_model(recording, recording.deployed, variant.terms.unequal_contexts, scale)
    if not recording.steps:
        raise bad_input(
            f"nothing says how long a step of {recording.name} takes",
            expected="a kernel profile, a bundled GPU and model, steps, or --steps-from with another recording",
        )
    return fitted_model(recording.steps, "this very recording", scale)


def _validate(recording: Recording, model: StepModel, parameters: dict[str, Any], variant: Variant) -> Validation:
    config = recording.config
    if variant.synchronous:
        config = replace(config, async_scheduling=False)
    if variant.no_prefix_caching:
        config = replace(config, enable_prefix_caching=False)
    stepping: Stepping = "leap" if variant.forced is None else "step"
    host = variant.calibration.host(recording.host)
    replayed = replay(recording.requests, config, host, model, stepping)
    shown = ("num_gpu_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "async_scheduling")
    engine = {name: value for name, value in asdict(config).items() if name in (*shown, "enable_prefix_caching")}
    everything = {"engine": {"version": recording.engine, **engine}, **parameters}
    if variant.calibration != UNFITTED:
        everything["calibration"] = {
            name: value for name, value in variant.calibration._asdict().items() if value is not None
        }
    if recording.derived:
        everything["derived"] = recording.derived
    return Validation(recording.name, compare(recording, replayed), everything, recording, replayed)
