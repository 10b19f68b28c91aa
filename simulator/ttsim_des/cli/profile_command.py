"""`ttsim-des profile show|check|diff|import`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ttsim_des.gpu_profiles.imported import Hardware, Imported
    from ttsim_des.latency.profile import GpuProfile


@click.group("profile")
def command() -> None:
    """Look into GPU profiles, compare them, and make them from other simulators' tables.

    A PROFILE is a bundled GPU's name, or a directory, with a slash in its name (./my-gpu).
    """


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
_dtype = click.option("--dtype", default="bf16", show_default=True, help="Of the weights: bf16 or fp8.")
_kv_dtype = click.option("--kv-dtype", default="bf16", show_default=True, help="Of the KV cache: bf16 or fp8.")


@command.command("show")
@click.argument("name", metavar="PROFILE")
@_dtype
@_kv_dtype
@_as_json
def show(name: str, dtype: str, kv_dtype: str, as_json: bool) -> None:
    """What PROFILE holds: hardware, tables with their ranges, source, and the bundled models that it can time.

    \b
    Examples:
      ttsim-des profile show h200-sxm
      ttsim-des profile show b200-sxm --dtype fp8 --kv-dtype fp8
    """
    from ttsim_des.gpu_profiles.describe import described, servable
    from ttsim_des.report.profile_view import shown

    profile = _load(name)
    found, models = described(profile), servable(profile, dtype, kv_dtype)
    click.echo(json.dumps({"schema": 1, **found, "models": models}, indent=2) if as_json else shown(found, models))


@command.command("check")
@click.argument("name", metavar="PROFILE")
@_as_json
def check(name: str, as_json: bool) -> None:
    """How good the tables of PROFILE are: noise, gaps, and what is faster than the data sheet allows (exit code 3).

    \b
    Examples:
      ttsim-des profile check a100-sxm
      ttsim-des profile check profiles/my-gpu --json
    """
    from ttsim_des.errors import EXIT_THRESHOLD
    from ttsim_des.gpu_profiles.quality import examined, impossible
    from ttsim_des.report import profile_view

    profile = _load(name)
    tables, wrong = examined(profile), impossible(profile)
    if as_json:
        click.echo(json.dumps({"schema": 1, "tables": tables, "impossible": wrong}, indent=2))
    else:
        click.echo(f"{profile.meta.name}: {profile.meta.device}\n")
        click.echo(profile_view.examined(tables, wrong))
    if wrong:
        raise SystemExit(EXIT_THRESHOLD)


@command.command("diff")
@click.argument("first")
@click.argument("second")
@click.option("--model", help="Compare the steps of this model too: a bundled one, or its file.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="With --model: tensor parallelism.")
@_dtype
@_kv_dtype
@click.option("--within", type=click.FloatRange(0), metavar="PERCENT", help="Exit 3 when anything differs by more.")
@_as_json
def diff(
    first: str, second: str, model: str | None, tp: int, dtype: str, kv_dtype: str, within: float | None, as_json: bool
) -> None:
    """How far SECOND is from FIRST: each point of FIRST on the curve of SECOND, and the steps of a model.

    With a thinned profile as SECOND it says what the thinning did.

    \b
    Examples:
      ttsim-des profile diff h100-sxm h200-sxm --model Qwen3-8B
      ttsim-des profile diff ./whole ./thinned --within 1
    """
    from ttsim_des.errors import EXIT_THRESHOLD
    from ttsim_des.gpu_profiles.difference import largest, step_differences, table_differences
    from ttsim_des.latency.geometry import load_geometry
    from ttsim_des.report.profile_view import compared

    profiles = _load(first), _load(second)
    tables = table_differences(*profiles)
    steps: list[dict[str, Any]] = []
    if model is not None:
        steps = step_differences(*profiles, load_geometry(model, Path()), tp, dtype, kv_dtype)
    worst = largest(tables, steps)
    if as_json:
        click.echo(json.dumps({"schema": 1, "tables": tables, "steps": steps, "largest_pct": worst}, indent=2))
    else:
        click.echo(compared((first, second), tables, steps))
    if within is not None and worst > within:
        raise SystemExit(EXIT_THRESHOLD)


@command.group("import")
def import_() -> None:
    """Make a profile from the kernel tables of another simulator.

    Those tables do not say what the GPU's data sheet says: name a bundled GPU with --like, or give the numbers.
    """


_HARDWARE = (
    click.option("--out", required=True, metavar="DIR", help="Where to write the profile; must not exist."),
    click.option("--like", metavar="GPU", help="Take memory, bandwidth, peak and SMs from this bundled profile."),
    click.option("--memory-gib", type=click.FloatRange(0, min_open=True), help="Memory that the driver reports."),
    click.option("--bandwidth-gb-per-s", type=click.FloatRange(0, min_open=True), help="Of the memory."),
    click.option("--peak-tflops", type=click.FloatRange(0, min_open=True), help="Dense, in bf16."),
    click.option("--sms", type=click.IntRange(1), help="Streaming multiprocessors."),
    click.option("--link-latency-us", type=click.FloatRange(0), help="State an all-reduce where none was measured."),
    click.option("--link-gb-per-s", type=click.FloatRange(0, min_open=True), help="Its bytes per second."),
)


def _hardware_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_HARDWARE):
        function = option(function)
    return function


@import_.command("vidur")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--network", metavar="FILE", help="all_reduce.csv of the network.")
@click.option("--device", required=True, help="The GPU's name, for people.")
@_hardware_options
def import_vidur(folders: tuple[str, ...], network: str | None, device: str, out: str, **told: Any) -> None:
    """From Vidur: each FOLDER has mlp.csv and attention.csv of a model on this GPU.

    \b
    Example:
      ttsim-des profile import vidur a100/meta-llama/Llama-2-7b-hf --network a100_dgx/all_reduce.csv
        --device A100 --like a100-sxm --out ./a100-vidur
    """
    from ttsim_des.gpu_profiles.vidur import read_vidur

    hardware = _hardware(told)
    imported = read_vidur([Path(folder) for folder in folders], None if network is None else Path(network))
    imported.device = device
    _write(imported, hardware, out, told)


@import_.command("servingsim")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--model", help="Geometry, where the one that meta.yaml names is not bundled.")
@_hardware_options
def import_servingsim(folders: tuple[str, ...], model: str | None, out: str, **told: Any) -> None:
    """From LLMServingSim 2.0: each FOLDER has meta.yaml and tp1, tp2, ... with tables of one model.

    \b
    Example:
      ttsim-des profile import servingsim rtx4090-llama31-8b/kernel_profile --out ./rtx4090
        --memory-gib 23.99 --bandwidth-gb-per-s 1008 --peak-tflops 165.2 --sms 128
    """
    from ttsim_des.gpu_profiles.servingsim import read_servingsim

    hardware = _hardware(told)
    imported = read_servingsim([Path(folder) for folder in folders], model, hardware.sms)
    _write(imported, hardware, out, told)


def _hardware(told: dict[str, Any]) -> Hardware:
    """The data sheet's numbers: of --like, else given, or a usage error naming what is missing."""
    from ttsim_des.gpu_profiles.imported import Hardware

    if (like := told["like"]) is not None:
        return Hardware.like(_load(like).meta)
    missing = [name for name in ("memory_gib", "bandwidth_gb_per_s", "peak_tflops") if told[name] is None]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise click.UsageError(f"Without --like GPU, give {options}.")
    peaks = {"bf16": told["peak_tflops"] * 1e12}
    return Hardware(told["memory_gib"], told["bandwidth_gb_per_s"] * 1e9, peaks, told["sms"])


def _write(imported: Imported, hardware: Hardware, out: str, told: dict[str, Any]) -> None:
    from ttsim_des.gpu_profiles.describe import DEGREES
    from ttsim_des.gpu_profiles.imported import TABLES, add_link, write_imported

    if (told["link_latency_us"] is None) != (told["link_gb_per_s"] is None):
        raise click.UsageError("--link-latency-us and --link-gb-per-s go together.")
    if told["link_gb_per_s"] is not None:
        if imported.rows("all_reduce"):
            raise click.UsageError("The tables have all-reduces: leave --link-latency-us and --link-gb-per-s out.")
        add_link(imported, told["link_latency_us"], told["link_gb_per_s"], DEGREES[1:])
    write_imported(Path(out), imported, hardware)
    for family in TABLES:
        click.echo(f"{family}: {len(imported.rows(family)):,} rows")
    for note in imported.notes:
        click.echo(note)
    click.echo(f"written to {out}; see `ttsim-des profile check {out if '/' in out else f'./{out}'}`")


def _load(name: str) -> GpuProfile:
    from ttsim_des.latency.profile import load_profile

    return load_profile(name)
