"""Fitting a calibration: the few numbers that bring simulations nearest to measurements, by relative error.

What is compared are closed-loop rows (TPOT of each; TTFT too where the front end's time is fitted) or recordings (mean
TPOT and mean end-to-end latency of each). Residuals are logarithms of simulated over measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ttsim_des.errors import bad_input
from ttsim_des.latency.calibration import SCHEMA, Calibration
from ttsim_des.validation.closed_loop import Recipe, simulate_rows, summarise
from ttsim_des.validation.closed_table import ClosedRow
from ttsim_des.validation.run import Variant, validate

Metrics = Mapping[str, Mapping[str, float | None]]


class _Scale(NamedTuple):
    """Where the search for a parameter begins, and how far it steps to see what the parameter does."""

    start: float
    step: float


PARAMETERS = {
    "kernel_scale": _Scale(1.0, 0.02),
    "step_us": _Scale(1000.0, 200.0),
    "sequence_us": _Scale(10.0, 5.0),
    "request_us": _Scale(0.0, 1000.0),
}
"""What can be fitted, by its name in `Calibration`."""
MOST_SIMULATIONS = 12
"""Passes over all measurements besides those that take derivatives."""


@dataclass(frozen=True, slots=True)
class ClosedTarget:
    """Rows of a closed-loop table under a recipe."""

    name: str
    rows: Sequence[ClosedRow]
    recipe: Recipe

    def residuals(self, calibration: Calibration) -> list[float]:
        """One per row; two where the front end is fitted."""
        results = simulate_rows(self.rows, replace(self.recipe, calibration=calibration))
        found = [log(result.tpot_ratio) for result in results]
        if calibration.request_us is not None:
            found += [log(result.ttft_ratio) for result in results]
        return found

    def errors(self, calibration: Calibration) -> dict[str, float]:
        """Mean absolute errors and biases in percent."""
        metrics = summarise(simulate_rows(self.rows, replace(self.recipe, calibration=calibration)))
        return {name: float(row["simulated"] or 0.0) for name, row in metrics.items()}


@dataclass(frozen=True, slots=True)
class RecordingTarget:
    """A folder of recordings."""

    folder: Path
    variant: Variant

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def residuals(self, calibration: Calibration) -> list[float]:
        """Two per recording."""
        return [
            log(1 + (row["error_pct"] or 0.0) / 100)
            for metrics in self._metrics(calibration)
            for row in (metrics["tpot_s.mean"], metrics["e2e_s.mean"])
        ]

    def errors(self, calibration: Calibration) -> dict[str, float]:
        """Errors of the means in percent; of several recordings the mean absolute ones."""
        names = ("ttft_s.mean", "tpot_s.mean", "e2e_s.mean")
        per_recording = [[row[name]["error_pct"] or 0.0 for name in names] for row in self._metrics(calibration)]
        if len(per_recording) == 1:
            return dict(zip(names, per_recording[0], strict=True))
        return dict(zip(names, np.abs(per_recording).mean(axis=0).tolist(), strict=True))

    def _metrics(self, calibration: Calibration) -> list[Metrics]:
        return [result.metrics for result in validate(self.folder, replace(self.variant, calibration=calibration))]


Target = ClosedTarget | RecordingTarget


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration, the standard error of each fitted number, and the errors before and after, by target."""

    calibration: Calibration
    standard_errors: Mapping[str, float]
    before: Mapping[str, Mapping[str, float]]
    after: Mapping[str, Mapping[str, float]]


def fit(targets: Sequence[Target], names: Sequence[str]) -> Fit:
    """Fit the named parameters to all targets by least squares of relative errors; none falls below 0.

    InputError where the targets say less than was asked of them.
    """
    from scipy.optimize import least_squares

    def residuals(place: NDArray[np.float64]) -> NDArray[np.float64]:
        calibration = _calibration(names, place)
        return np.array([value for target in targets for value in target.residuals(calibration)])

    # The search runs in steps of each parameter, moved by one so that a difference of a tenth never vanishes at 0.
    start = np.array([PARAMETERS[name].start / PARAMETERS[name].step + 1 for name in names])
    found = least_squares(
        residuals, start, bounds=(1, np.inf), diff_step=0.05, xtol=1e-4, ftol=1e-5, max_nfev=MOST_SIMULATIONS
    )
    if len(found.fun) <= len(names):
        raise bad_input(
            f"{len(found.fun)} measurements cannot tell {len(names)} parameters",
            key="--fit",
            expected="fewer parameters, or more to fit them to",
        )
    calibration, plain = _calibration(names, found.x), _before(names)
    return Fit(
        calibration,
        _standard_errors(names, found.jac, found.fun),
        {target.name: target.errors(plain) for target in targets},
        {target.name: target.errors(calibration) for target in targets},
    )


def _calibration(names: Sequence[str], place: NDArray[np.float64]) -> Calibration:
    values = {
        name: float((value - 1) * PARAMETERS[name].step) for name, value in zip(names, place.tolist(), strict=True)
    }
    return Calibration(**values)


def _before(names: Sequence[str]) -> Calibration:
    """What holds without a fit; the front end counts as fitted where it will be, so that both sides count TTFT."""
    return Calibration(request_us=0.0) if "request_us" in names else Calibration()


def _standard_errors(names: Sequence[str], slopes: NDArray[np.float64], left: NDArray[np.float64]) -> dict[str, float]:
    """From the spread of what is left and how much each parameter moves it; infinite where it moves nothing."""
    variance = float(left @ left) / (len(left) - len(names))
    covariance = variance * np.linalg.pinv(slopes.T @ slopes)
    found = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return {
        name: float(error * PARAMETERS[name].step) if slopes[:, index].any() else float("inf")
        for index, (name, error) in enumerate(zip(names, found, strict=True))
    }


def write(
    path: Path,
    fitted: Fit,
    *,
    command: str,
    sources: Sequence[Path],
    reported: Mapping[str, Mapping[str, float]],
    recipe: Mapping[str, Any] | None,
) -> None:
    """Write a calibration with its provenance; InputError when the file exists or cannot be written."""
    lines = [
        "# Written by `ttsim-des calibrate`; docs/validity.md says how. Host times stand in for the engine file's.",
        f"schema = {SCHEMA}",
        "",
        "[parameters]",
        *(_line(name, value) for name, value in fitted.calibration._asdict().items() if name in fitted.standard_errors),
        "",
        "[standard_errors]",
        *(_line(name, value) for name, value in fitted.standard_errors.items()),
        "",
        "[provenance]",
        f"command = {json.dumps(command)}",
        *(f"{json.dumps(source.name)} = {json.dumps('sha256 ' + digest(source))}" for source in sources),
    ]
    if recipe is not None:
        lines += ["", "[provenance.recipe]", *(_line(name, value) for name, value in recipe.items())]
    for section, errors in (
        ("fitted_on.before", fitted.before),
        ("fitted_on.after", fitted.after),
        ("reported_on", reported),
    ):
        for target, values in errors.items():
            lines += ["", f"[{section}.{json.dumps(target)}]", *(_line(name, value) for name, value in values.items())]
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise bad_input(f"{path} exists already", key="--out", expected="a new file's name") from None
    except OSError as error:
        raise bad_input(f"{path} cannot be written: {error.strerror}", key="--out") from None


def _line(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{name} = {str(value).lower()}"
    key = json.dumps(name) if "." in name else name
    if isinstance(value, float):
        return f"{key} = {value:.4f}" if value < float("inf") else f"{key} = inf"
    return f"{key} = {json.dumps(value)}"


def digest(source: Path) -> str:
    """SHA-256 of a file, or of all files of a folder by name."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(source).as_posix().encode() if source.is_dir() else b"")
        total.update(path.read_bytes())
    return total.hexdigest()
