"""The step model of a recording: composed from its own kernel profile, or its steps as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ttsim_des.engine.engine_file import load_engine_file
from ttsim_des.latency.affine import AffineStepModel
from ttsim_des.latency.geometry import load_geometry
from ttsim_des.latency.kernels import KernelStepModel
from ttsim_des.latency.layers import LayerStepModel, Link, Terms
from ttsim_des.latency.profile import load_profile
from ttsim_des.latency.shape import Run, StepModel, StepShape
from ttsim_des.recordings.recording import Deployed, RecordedStep, Recording
from ttsim_des.recordings.step_times import fit_step_times

CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""Batch sizes captured in CUDA graphs by default (vllm/config/vllm.py of 0.19), up to twice the seats."""


class RecordedDurations:
    """Teacher-forced: the k-th step takes what the k-th recorded one took; after the last, its time again."""

    def __init__(self, durations_ns: Sequence[int]) -> None:
        self._durations_ns, self._next = durations_ns, 0

    def step_ns(self, shape: StepShape) -> int:
        """The next recorded duration."""
        at = min(self._next, len(self._durations_ns) - 1)
        self._next += 1
        return max(1, self._durations_ns[at])

    def decode_run(self, shape: StepShape, max_steps: int) -> Run:
        """One step: what comes after it is not a function of the shape."""
        return Run(1, self.step_ns(shape), 0)

    def in_domain(self, shape: StepShape) -> bool:
        """A recording has no domain to leave."""
        return True


def profile_model(
    recording: Recording, terms: Terms, link: Link, kernel_scale: float = 1.0
) -> tuple[LayerStepModel, dict[str, Any]]:
    """The model composed from the profile beside the recording, and the parameters that it took from elsewhere.

    InputError where the model's geometry is unknown.
    """
    profile = recording.profile
    assert profile is not None
    geometry = load_geometry(profile.model.rsplit("/", 1)[-1], Path())
    ranks, seats = profile.tp, recording.config.max_num_seqs
    kv_heads = geometry.kv_heads_per_gpu(ranks)
    model = LayerStepModel(
        profile.tables,
        layers=geometry.layers,
        hidden=geometry.hidden,
        vocab=geometry.vocab,
        max_context=recording.config.max_model_len,
        terms=terms,
        link=link if ranks > 1 else None,
        stream=profile.stream,
        kv_heads=kv_heads,
        head_bytes=geometry.kv_bytes_per_token("bf16", ranks) / geometry.layers / kv_heads,
        capture_sizes=[size for size in CAPTURE_SIZES if size <= 2 * seats],
        kernel_scale=kernel_scale,
    )
    parameters: dict[str, Any] = {"terms": asdict(terms)}
    if ranks > 1:
        parameters["link"] = f"{link.latency_us:g} us + bytes / {link.bytes_per_s / 1e9:g} GB/s per all-reduce, stated"
    if profile.stream is not None:
        rate = profile.stream.bytes_per_s / 1e9
        parameters["stream"] = (
            f"{rate:.3g} GB/s of one thread block, fitted to the profile's batches of unequal contexts"
        )
    return model, parameters


def formula_model(formula_ns: Mapping[str, float], scale: float) -> tuple[StepModel, dict[str, Any]]:
    """The formula that a golden run's steps followed."""
    model = AffineStepModel(**{name: scale * value for name, value in formula_ns.items()})
    return model, {"step times": "the recording's own formula"}


def fitted_model(steps: Sequence[RecordedStep], said: str, scale: float) -> tuple[StepModel, dict[str, Any]]:
    """Step times fitted to the steps of a recording; InputError where it has too few."""
    model, coefficients = fit_step_times(steps, said, scale)
    return model, {"step times": {"fitted to the steps of": said, **coefficients}}


def kernel_model(
    recording: Recording, deployed: Deployed, unequal_contexts: bool, scale: float
) -> tuple[StepModel, dict[str, Any]]:
    """The kernels of the bundled GPU profile, composed; host time is that of the engine file."""
    profile, engine, config = load_profile(deployed.gpu), load_engine_file(recording.engine), recording.config
    model = KernelStepModel(
        profile,
        load_geometry(deployed.model, Path()),
        deployed.tp,
        deployed.dtype,
        deployed.kv_dtype,
        max_context=config.max_model_len,
        graph_tokens=min(engine.graph_tokens, 2 * config.max_num_seqs, config.max_num_batched_tokens),
        gap_ns=engine.step_gap_ns,
        unequal_contexts=unequal_contexts and profile.meta.kv_stream.is_measured,
        kernel_scale=scale,
    )
    return model, {"step times": f"kernels of {deployed.gpu}, {deployed.model} on {deployed.tp} GPU(s)"}
