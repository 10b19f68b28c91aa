"""Measure how far off the simulator is on recordings of real engines, as the tables of docs/validity.md.

    python tools/validity.py DATA --closed-loop silicon_sample.csv                # print them
    python tools/validity.py DATA --closed-loop silicon_sample.csv --write        # put them into docs/validity.md

DATA holds `recordings/` (GPU runs with kernel profiles) and `vllm_cpu/` (CPU runs with every step); silicon_sample.csv
comes with the PyPI package aiconfigurator-core. None is part of this repository; docs/validity.md says whose they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, median

from ttsim_des.errors import InputError
from ttsim_des.latency.calibration import UNFITTED, Calibration
from ttsim_des.latency.layers import Link, Terms
from ttsim_des.validation.calibrate import ClosedTarget, fit
from ttsim_des.validation.closed_loop import Recipe, simulate_rows
from ttsim_des.validation.closed_table import read_table
from ttsim_des.validation.run import Validation, Variant, validate

PAGE = Path(__file__).parents[1] / "docs" / "validity.md"
BEGIN, END = "<!-- tables: tools/validity.py -->", "<!-- end of tables -->"
GPU_RUNS = ("rtxpro6000-qwen3-32b-tp2", "rtx4090-llama31-8b")
CPU_RUNS = ("s2_poisson_light", "s2_poisson_moderate_b", "s4_fanout", "s8_tree")
SWEEP = "s1_sweep_b"
CLOSED_ROWS = ("system=h100_sxm", "model_path=Qwen/Qwen3-32B", "precision=")
FP8_ROWS = ("model_path=meta-llama/Llama-3.1-70B", "precision=fp8", "backend=vllm", "mode=agg")
HEADLINES = (
    *("ttft_s.mean", "ttft_s.p99", "tpot_s.mean", "tpot_s.p99", "e2e_s.mean", "e2e_s.p99"),
    *("output_tokens_per_s", "per_request_e2e_mae_pct"),
)


def main() -> int:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description="Measure the simulator against recordings.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--closed-loop", type=Path, required=True, metavar="TABLE")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/validity.md")
    arguments = parser.parse_args()
    try:
        tables = "\n\n".join(
            (
                *gpu_tables(arguments.data / "recordings"),
                cpu_table(arguments.data / "vllm_cpu"),
                closed_loop_table(arguments.closed_loop),
                fp8_table(arguments.closed_loop),
            )
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not arguments.write:
        print(tables)
        return 0
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")
    return 0


def gpu_tables(folder: Path) -> list[str]:
    """One table a GPU run: everything on, then each term off."""
    return [_gpu_table(folder / name) for name in GPU_RUNS]


def _gpu_table(folder: Path) -> str:
    base = Variant()
    variants: dict[str, Variant] = {"all terms": base}
    for term in (field.name for field in fields(Terms)):
        variants[f"without {term}"] = replace(base, terms=Terms(**{term: False}))
    variants["synchronous scheduling"] = replace(base, synchronous=True)
    variants["without prefix caching"] = replace(base, no_prefix_caching=True)
    variants["link of 40 us"] = replace(base, link=Link(40.0, 16e9))
    head = "".join(f" {name.removesuffix('_pct')} |" for name in HEADLINES)
    rule = "|---" * (len(HEADLINES) + 2) + "|"
    lines = [f"**{folder.name}**, error in %:", "", f"| variant |{head} preemptions |", rule]
    for name, variant in variants.items():
        (result,) = validate(folder, variant)
        cells = "".join(f" {_cell(result, metric)} |" for metric in HEADLINES)
        lines.append(f"| {name} |{cells} {result.metrics['preemptions']['simulated']:.0f} |")
    return "\n".join(lines)


def cpu_table(folder: Path) -> str:
    """Every CPU run: with step times of the sweep, the same with the speed of its own hour, with recorded durations."""
    names = ("makespan_s", "e2e_s.mean", "tpot_s.mean", "query_s.p95", "per_request_e2e_mae_pct")
    fitted_names = ("makespan_s", "e2e_s.mean", "tpot_s.mean")
    head = "".join(f" {name.removesuffix('_pct')} |" for name in names)
    head += " step times on the recorded schedule, sum | speed, fitted |"
    head += "".join(f" {name} with it |" for name in fitted_names)
    lines = [
        f"**CPU runs**, error in %; step times fitted to {SWEEP}, a run of another hour:",
        "",
        f"| run |{head} e2e_s.mean with recorded durations |",
        "|---" * (len(names) + len(fitted_names) + 4) + "|",
    ]
    for run in CPU_RUNS:
        swept = Variant(steps_from=folder / SWEEP)
        predicted = list(validate(folder / run, swept))
        forced = list(validate(folder / run, Variant(forced="durations")))
        for index, (one, other) in enumerate(zip(predicted, forced, strict=True)):
            scale = 1 / (1 + (one.metrics["steps_s.sum"]["error_pct"] or 0.0) / 100)
            scaled = replace(swept, calibration=Calibration(kernel_scale=scale))
            fitted = next(islice(validate(folder / run, scaled), index, None))
            cells = "".join(f" {_cell(one, metric)} |" for metric in names)
            with_it = "".join(f" {_cell(fitted, metric)} |" for metric in fitted_names)
            name = one.name.rsplit("/", 1)[-1]
            sums = f" {_cell(one, 'steps_s.sum')} | {scale:.3f} |"
            lines.append(f"| {name} |{cells}{sums}{with_it} {_cell(other, 'e2e_s.mean')} |")
    return "\n".join(lines)


def closed_loop_table(path: Path) -> str:
    """H100 rows: host time fitted on one tensor-parallel degree and reported on the other, then on both; ablations."""
    rows = {tp: read_table(path, [*CLOSED_ROWS, f"tp_size={tp}"]).rows for tp in (2, 4)}
    rows_of = {"2": rows[2], "4": rows[4], "2 and 4": [*rows[2], *rows[4]]}
    targets = {tp: ClosedTarget(tp, found, Recipe()) for tp, found in rows_of.items()}
    lines = [
        f"**Closed loops**, H100, Qwen3-32B, vLLM 0.12, {len(rows_of['2 and 4'])} rows, in %:",
        "",
        "| host time | rows | TPOT MAPE | bias | TTFT MAPE | bias |",
        "|---|---|---|---|---|---|",
    ]

    def add(host: str, tp: str, errors: Mapping[str, float]) -> None:
        cells = (errors[name] for name in ("tpot_mape_pct", "tpot_bias_pct", "ttft_mape_pct", "ttft_bias_pct"))
        mape, bias, ttft_mape, ttft_bias = cells
        lines.append(f"| {host} | TP {tp} | {mape:.2f} | {bias:+.2f} | {ttft_mape:.2f} | {ttft_bias:+.2f} |")

    for fitted_on, reported_on in (("4", ("4", "2")), ("2", ("2", "4")), ("2 and 4", ("2 and 4",))):
        calibration = fit([targets[fitted_on]], ["step_us", "sequence_us"]).calibration
        host = (
            f"{calibration.step_us:.0f} us a step, {calibration.sequence_us:.1f} a sequence, fitted on TP {fitted_on}"
        )
        for tp in reported_on:
            add(host if tp == fitted_on else "the same, **predicted**", tp, targets[tp].errors(calibration))
    both = targets["2 and 4"]
    add("none", "2 and 4", both.errors(Calibration(step_us=0.0, sequence_us=0.0)))
    for what, recipe in (
        ("the engine file's; asynchronous scheduling", Recipe(async_scheduling=True)),
        ("the engine file's; no unequal contexts", Recipe(unequal_contexts=False)),
        ("the engine file's; token budget 8192", Recipe(max_num_batched_tokens=8192)),
        ("the engine file's; equal lengths", Recipe(jitter=0.0)),
        ("the engine file's; 10 requests for each in flight", Recipe(requests_per_concurrency=10)),
    ):
        add(what, "2 and 4", replace(both, recipe=recipe).errors(UNFITTED))
    return "\n".join(lines)


def fp8_table(path: Path) -> str:
    """Llama-3.1-70B in fp8 on H200 and B200: predictions alone, with the KV cache in bf16 and in fp8."""
    lines = [
        "**Closed loops in fp8**, Llama-3.1-70B, 60 rows a GPU, nothing fitted, in %:",
        "",
        "| GPU | KV cache | rows | TPOT MAPE | bias | median error | TTFT MAPE | bias | median error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for gpu in ("h200", "b200"):
        rows = read_table(path, [*FP8_ROWS, f"system={gpu}_sxm"]).rows
        for kv_dtype in ("bf16", "fp8"):
            recipe = Recipe(engine="vllm-0.32", max_num_batched_tokens=None, kv_dtype=kv_dtype)
            results = simulate_rows(rows, recipe)
            for tp in (1, 2, 4, 8, None):
                chosen = [result for result in results if tp in (None, result.row.tp)]
                cells = []
                for ratios in ([each.tpot_ratio for each in chosen], [each.ttft_ratio for each in chosen]):
                    errors = [100 * (ratio - 1) for ratio in ratios]
                    cells += [f"{fmean(map(abs, errors)):.1f}", f"{fmean(errors):+.1f}", f"{median(errors):+.1f}"]
                lines.append(f"| {gpu.upper()} | {kv_dtype} | {f'TP {tp}' if tp else 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: Validation, metric: str) -> str:
    if metric not in result.metrics:
        return "-"
    row = result.metrics[metric]
    value = row["simulated"] if metric.endswith("_pct") else row["error_pct"]
    if value is None:
        return "-"
    return f"{value:.2f}" if metric.endswith("_pct") else f"{value + 0.0:+.2f}"


if __name__ == "__main__":
    sys.exit(main())
