"""Calibration: a handful of numbers per GPU and engine version, fitted to measurements and kept with their provenance.

They are the only numbers of the simulator that come from whole-system measurements; a run uses them when its
scenario names the file (`latency.calibration`), never silently. docs/validity.md says how they are fitted.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttsim_des import assets
from ttsim_des.errors import bad_input
from ttsim_des.latency.host import HostOverhead
from ttsim_des.units import us_to_ns

SCHEMA = 1
KEY = "latency.calibration"


class Calibration(NamedTuple):
    """`kernel_scale` multiplies all device times; the others are host microseconds, None where they were not fitted.

    `step_us` and `sequence_us` are what scheduling and updating take together; they are split between the two as the
    engine file splits its own.
    """

    kernel_scale: float = 1.0
    step_us: float | None = None
    sequence_us: float | None = None
    request_us: float | None = None

    def host(self, base: HostOverhead) -> HostOverhead:
        """The host time of an engine file with the fitted values in place of its own."""
        schedule_step_ns, update_step_ns = _split(self.step_us, base.schedule_step_ns, base.update_step_ns)
        schedule_sequence_ns, update_sequence_ns = _split(
            self.sequence_us, base.schedule_sequence_ns, base.update_sequence_ns
        )
        request_ns = base.request_ns if self.request_us is None else us_to_ns(self.request_us)
        return HostOverhead(schedule_step_ns, schedule_sequence_ns, update_step_ns, update_sequence_ns, request_ns)


UNFITTED = Calibration()
"""Everything as the profile and the engine file say."""


def _split(total_us: float | None, schedule_ns: int, update_ns: int) -> tuple[int, int]:
    if total_us is None:
        return schedule_ns, update_ns
    total_ns, before_ns = us_to_ns(total_us), schedule_ns + update_ns
    share_ns = total_ns * schedule_ns // before_ns if before_ns else total_ns
    return share_ns, total_ns - share_ns


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel_scale: float = Field(default=1.0, gt=0, le=10)
    step_us: float | None = Field(default=None, ge=0)
    sequence_us: float | None = Field(default=None, ge=0)
    request_us: float | None = Field(default=None, ge=0)


class _CalibrationToml(BaseModel):
    """What is read of the file; the rest of it is provenance, for people."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = Field(alias="schema", le=SCHEMA)
    parameters: _Parameters


def calibration_path(name: str, base_dir: Path) -> Path:
    """The file of a bundled calibration, or one relative to `base_dir`."""
    if name in assets.names("calibrations"):
        return assets.root("profiles") / "calibrations" / f"{name}.toml"
    return base_dir / name


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file that `ttsim-des calibrate` wrote; InputError naming it and what is wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        read = _CalibrationToml.model_validate(table)
    except OSError as error:
        raise bad_input(f"calibration {path} cannot be read: {error.strerror}", key=KEY) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise bad_input(f"calibration {path}: {where}: {first['msg']}", key=KEY) from None
    except ValueError as error:
        raise bad_input(f"calibration {path} is no TOML: {error}", key=KEY) from None
    return Calibration(**read.parameters.model_dump())
