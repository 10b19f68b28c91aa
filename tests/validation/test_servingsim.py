"""A made-up GPU run in LLMServingSim's layout: written from a simulation, so that validating it finds no error."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner

from ttsim_des.cli import main
from ttsim_des.errors import InputError
from ttsim_des.latency.layers import Link, Terms
from ttsim_des.recordings.servingsim import read_servingsim
from ttsim_des.units import ns_to_s
from ttsim_des.validation.models import profile_model
from ttsim_des.validation.replay import replay
from ttsim_des.validation.run import Variant, validate

EPOCH_S, MONOTONIC_S, LAG_S = 1_700_000_000.0, 5_000.0, 0.01
DENSE = ("embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
SIZES = (0, 16, 64, 256, 1024)


def table(path: Path, names: tuple[str, ...], rows: list[tuple]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(rows)


def attention_us(chunk: int, before: int, seqs: int, context: int) -> float:
    return 3 + chunk * (before + chunk / 2) / 2000 + seqs * context / 500 + (5 if chunk and seqs else 0)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Forty requests on an RTX 4090, some with a prompt that begins alike."""
    folder = tmp_path / "made-up"
    tables = folder / "kernel_profile" / "tp1"
    tables.mkdir(parents=True)
    (folder / "kernel_profile" / "meta.yaml").write_text("gpu: NVIDIA GeForce RTX 4090\nhardware: RTX4090\n")
    tokens = (1, 2, 4, 8, 16, 64, 256, 1024, 2048)
    rows = [(name, n, 10 + n / 20) for name in (*DENSE, "final_layernorm") for n in tokens]
    table(tables / "dense.csv", ("layer", "tokens", "time_us"), rows)
    rows = [(name, n, 100 + n) for name in ("lm_head", "sampler") for n in (1, 2, 64, 256)]
    table(tables / "per_sequence.csv", ("layer", "sequences", "time_us"), rows)
    grid = [key for key in product(SIZES, SIZES, (0, 1, 2, 4, 16, 64), SIZES) if key[0] or key[2]]
    grid = [key for key in grid if (key[2] > 0) == (key[3] > 0) and (key[0] > 0 or key[1] == 0)]
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    table(tables / "attention.csv", names, [(*key, attention_us(*key)) for key in grid])

    asked = [
        {
            "arrival_s": 0.02 * (index // 2),
            "prompt_tokens": 100 + 7 * index % 90,
            "output_tokens": 5 + 11 * index % 60,
            "block16_hash_ids": [1, 2, *range(100 * index + 3, 100 * index + 3 + (100 + 7 * index % 90) // 16 - 2)],
        }
        for index in range(40)
    ]
    meta = {
        "model": "meta-llama/Llama-3.1-8B",
        "vllm_version": "0.19.0",
        "engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 256, "max_model_len": 4096},
        "kv_cache": {"num_gpu_blocks": 60, "block_size": 16},
    }
    write(folder, meta, asked, [(row["arrival_s"], row["arrival_s"] + 1, row["arrival_s"] + 2) for row in asked])
    made_up = read_servingsim(folder)
    model, _ = profile_model(made_up, Terms(), Link(20, 16e9))
    done = replay(made_up.requests, made_up.config, made_up.host, model).requests
    times = [tuple(map(ns_to_s, (one.arrival_ns, one.first_token_ns, one.last_token_ns))) for one in done]
    write(folder, meta, asked, times)
    return folder


def write(folder: Path, meta: dict, asked: list[dict], times: list[tuple[float, float, float]]) -> None:
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "workload.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    served = [
        {
            "request_id": f"bench-{index}",
            "input_toks": row["prompt_tokens"],
            "output_toks": row["output_tokens"],
            "arrival_time": EPOCH_S + arrival_s,
            "queued_ts": MONOTONIC_S + arrival_s + (LAG_S if index % 3 else 0.0),
            "first_token_ts": MONOTONIC_S + first_s,
            "last_token_ts": MONOTONIC_S + last_s,
        }
        for index, (row, (arrival_s, first_s, last_s)) in enumerate(zip(asked, times, strict=True))
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in served))


def test_what_was_simulated_is_found_again(recording: Path) -> None:
    (result,) = validate(recording)
    assert result.metrics["per_request_e2e_mae_pct"]["simulated"] < 1e-3
    for name in ("ttft_s.mean", "tpot_s.p90", "e2e_s.p99", "output_tokens_per_s", "makespan_s"):
        assert abs(result.metrics[name]["error_pct"]) < 1e-3, name
    assert result.metrics["preemptions"]["measured"] is None
    assert result.metrics["preemptions"]["simulated"] > 0
    assert result.metrics["cached_tokens"]["simulated"] > 0


@pytest.mark.parametrize(
    "variant",
    [
        Variant(no_prefix_caching=True),
        Variant(synchronous=True),
        Variant(terms=Terms(mixed_attention=False)),
        Variant(terms=Terms(sampler=False)),
        Variant(terms=Terms(graph_padding=False)),
        Variant(terms=Terms(chunk_areas=False)),
    ],
    ids=["prefix caching", "asynchronous", "mixed attention", "sampler", "padding", "areas"],
)
def test_every_part_counts(recording: Path, variant: Variant) -> None:
    (result,) = validate(recording, variant)
    assert result.metrics["per_request_e2e_mae_pct"]["simulated"] > 1e-2


def test_command_prints_json_gates_and_draws(recording: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(main, ["validate", str(recording), "--json", "--fail-if", "e2e_s.mean > 0.1%"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert set(document["metrics"]["e2e_s.mean"]) == {"measured", "simulated", "error_pct"}
    assert document["parameters"]["engine"]["num_gpu_blocks"] == 60
    done = run(main, ["validate", str(recording), "--without", "sampler", "--fail-if", "e2e_s.mean > 0.1%"])
    assert done.exit_code == 3
    assert "e2e_s.mean" in done.stderr
    figures = tmp_path / "figures"
    assert run(main, ["validate", str(recording), "--figures", str(figures)]).exit_code == 0
    assert len(list(figures.glob("made-up-*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such recording"),
        (["{folder}/kernel_profile"], "this folder is no recording"),
        (["{folder}", "--fail-if", "e2e_s.maen > 2%"], "did you mean 'e2e_s.mean'"),
        (["{folder}", "--fail-if", "e2e_s.mean < 2%"], "is no gate"),
        (["{folder}", "--fail-if", "preemptions > 2%"], "was not recorded"),
        (["{folder}", "--forced", "durations"], "were not recorded"),
    ],
)
def test_wrong_input_is_explained(recording: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["validate", *(text.format(folder=recording) for text in arguments)])
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_damaged_files_are_named(recording: Path) -> None:
    (recording / "requests.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"requests.jsonl"):
        read_servingsim(recording)
    (recording / "kernel_profile" / "tp1" / "dense.csv").unlink()
    with pytest.raises(InputError, match=r"requests.jsonl"):
        read_servingsim(recording)
