"""Tables of closed-loop measurements: a model on a system, a load, and the mean TTFT and TPOT that came of it.

The columns are those of silicon_sample.csv (PyPI package aiconfigurator-core); plainer names are read as well.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ttsim_des import assets
from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.latency.geometry import BYTES_PER_ELEMENT, load_geometry

COLUMNS = {
    "model": ("model_path", "model"),
    "system": ("system", "gpu"),
    "tp": ("tp_size", "tp"),
    "concurrency": ("batch_size", "concurrency"),
    "input_tokens": ("isl", "input_tokens"),
    "output_tokens": ("osl", "output_tokens"),
    "ttft_ms": ("silicon_ttft_ms", "ttft_ms"),
    "tpot_ms": ("silicon_tpot_ms", "tpot_ms"),
}
"""What a line must say, and the names under which it is looked for."""
ASSUMED = {"backend": "vllm", "mode": "agg", "pp_size": "1", "attention_dp_size": "1"}
"""Columns that need not be there nor filled; lines with another value are of engines or layouts that this is not."""


@dataclass(frozen=True, slots=True)
class ClosedRow:
    """One measurement: a fixed number of requests in flight, and the means over all of them, in seconds."""

    name: str
    gpu: str
    model: str
    dtype: str
    tp: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class ClosedTable:
    """The rows that were asked for, and how many more could not be simulated, by reason."""

    rows: Sequence[ClosedRow]
    skipped: Mapping[str, int] = field(default_factory=dict)


def read_table(path: Path, where: Sequence[str] = ()) -> ClosedTable:
    """The rows of a table that fulfil every `column=value[,value...]`; InputError where there are none, or no table."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            lines = [dict(line, line=str(reader.line_num)) for line in reader]
            header = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_input(f"this table cannot be read: {error}", where=str(path), expected="a CSV file") from None
    names = _names(path, header)
    wanted = [_condition(text, path, header) for text in where]
    lines = [line for line in lines if all(_matches(line[column], values) for column, values in wanted)]
    rows, skipped = [], Counter[str]()
    for line in lines:
        reason = _reason(line, names)
        if reason is None:
            rows.append(_row(path, line, names))
        else:
            skipped[reason] += 1
    if not rows:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in skipped.items())
        message = f"none of the {len(lines)} rows can be simulated ({reasons})" if lines else "no row is left"
        raise bad_input(message, where=str(path), expected="other values of --where")
    return ClosedTable(rows, dict(skipped))


def _names(path: Path, header: Sequence[str]) -> dict[str, str]:
    """The column of each quantity; InputError naming the first that is missing."""
    found = {}
    for quantity, candidates in COLUMNS.items():
        column = next((name for name in candidates if name in header), None)
        if column is None:
            raise bad_input(f"there is no column for {quantity}", where=f"{path}:1", expected=" or ".join(candidates))
        found[quantity] = column
    return found


def _condition(text: str, path: Path, header: Sequence[str]) -> tuple[str, list[str]]:
    column, equals, values = text.partition("=")
    if not equals:
        raise bad_input(f"{text!r} is no condition", key="--where", expected="column=value[,value...]")
    if column not in header:
        raise bad_input(f"{path} has no column {column!r}", key="--where", nearest=nearest_name(column, header))
    return column, values.split(",")


def _matches(cell: str, values: Sequence[str]) -> bool:
    """Equal as numbers where both are, else as text."""
    try:
        return float(cell) in {float(value) for value in values}
    except ValueError:
        return cell in values


def _reason(line: Mapping[str, str], names: Mapping[str, str]) -> str | None:
    """Why a row cannot be simulated; None when it can."""
    for column, value in ASSUMED.items():
        cell = line.get(column) or value
        if not _matches(cell, [value]):
            return f"{column} = {cell}"
    model, gpu = _model(line[names["model"]]), _gpu(line[names["system"]])
    if gpu not in assets.names("gpus"):
        return f"no profile of {gpu}"
    if model not in assets.names("models"):
        return f"no geometry of {model}"
    if _dtype(line) not in BYTES_PER_ELEMENT:
        return f"precision {_dtype(line)}"
    if load_geometry(model, Path()).experts:
        return "experts: the column tp does not tell how they are shared"
    return None


def _model(path: str) -> str:
    """The geometry's name: that of the checkpoint without its publisher, tuning and quantisation."""
    name = path.rsplit("/", 1)[-1]
    return name if name in assets.names("models") else name.removesuffix("-FP8").removesuffix("-Instruct")


def _dtype(line: Mapping[str, str]) -> str:
    """Of the weights; bf16 where the table does not say. The KV cache is taken to be in bf16."""
    return line.get("precision") or "bf16"


def _gpu(system: str) -> str:
    return system.replace("_", "-")


def _row(path: Path, line: Mapping[str, str], names: Mapping[str, str]) -> ClosedRow:
    def number(quantity: str) -> float:
        cell = line[names[quantity]]
        try:
            value = float(cell)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise bad_input(
                f"{names[quantity]} = {cell!r}", where=f"{path}:{line['line']}", expected="a number above 0"
            )
        return value

    tp, concurrency = int(number("tp")), int(number("concurrency"))
    asked, told = int(number("input_tokens")), int(number("output_tokens"))
    model, gpu = _model(line[names["model"]]), _gpu(line[names["system"]])
    return ClosedRow(
        name=f"{gpu} {model} tp{tp} {asked}/{told} x{concurrency}",
        gpu=gpu,
        model=model,
        dtype=_dtype(line),
        tp=tp,
        concurrency=concurrency,
        input_tokens=asked,
        output_tokens=told,
        ttft_s=number("ttft_ms") / 1e3,
        tpot_s=number("tpot_ms") / 1e3,
    )
