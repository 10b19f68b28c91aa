"""Any recording, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ttsim_des.errors import bad_input
from ttsim_des.recordings.native import META, is_native, read_native
from ttsim_des.recordings.recording import RecordedStep, Recording
from ttsim_des.recordings.servingsim import is_servingsim, read_servingsim
from ttsim_des.recordings.vllm_cpu import as_recording, is_vllm_cpu, read_runs, recorded_steps


def read_steps(folder: Path) -> Sequence[RecordedStep]:
    """The steps of the (first) recording in a folder, whatever became of its requests; possibly none."""
    if is_vllm_cpu(folder):
        return recorded_steps(next(read_runs(folder)))
    return next(read_recordings(folder)).steps


def read_recordings(folder: Path) -> Iterator[Recording]:
    """All recordings in a folder; InputError for what cannot be read."""
    if not folder.is_dir():
        raise bad_input("there is no such recording", where=str(folder), expected="a directory")
    if is_native(folder):
        yield read_native(folder)
    elif is_servingsim(folder):
        yield read_servingsim(folder)
    elif is_vllm_cpu(folder):
        for run in read_runs(folder):
            yield as_recording(run)
    else:
        raise bad_input(
            "this folder is no recording",
            where=str(folder),
            expected=f"{META}, or meta.json with workload.jsonl, or meta*.json with steps*.csv.gz (docs/recordings.md)",
        )
