"""Resolving a scenario's cluster and engine: what is taken, what is derived, what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ttsim_des import assets, load, run
from ttsim_des.deployment import Deployment, deploy
from ttsim_des.engine.engine_file import load_engine_file, read_engine_file
from ttsim_des.errors import InputError
from ttsim_des.latency.host import HostOverhead
from ttsim_des.latency.shape import PrefillChunk, StepShape
from ttsim_des.scenario.schema import Scenario
from ttsim_des.units import GIB
from ttsim_des.workload.expected import expected_work

BASE: dict[str, Any] = {
    "schema": 1,
    "name": "test",
    "workload": {
        "strategy": {"name": "best_of_n", "samples": 4},
        "arrivals": {"process": "poisson", "rate_per_s": 1.0},
        "prompt": {"distribution": "constant", "tokens": 100},
        "output": {"distribution": "constant", "tokens": 1000},
        "max_tokens": 4000,
    },
    "cluster": {"gpu": "h200-sxm", "model": "DeepSeek-R1-Distill-Qwen-7B"},
}


def scenario(**changes: object) -> Scenario:
    """BASE with dotted keys (written with __) set."""
    table = json.loads(json.dumps(BASE))
    for key, value in changes.items():
        *parents, last = key.split("__")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return Scenario.model_validate(table)


def deployed(**changes: object) -> Deployment:
    return deploy(scenario(**changes), Path())


def refused(base_dir: Path = Path(), **changes: object) -> dict[str, str]:
    with pytest.raises(InputError) as error:
        deploy(scenario(**changes), base_dir)
    return {problem.key: str(problem) for problem in error.value.problems}


def test_defaults_depend_on_the_gpu() -> None:
    for gpu, seqs, tokens in (("h200-sxm", 1024, 8192), ("h100-sxm", 1024, 8192), ("a100-sxm", 256, 2048)):
        config = deployed(cluster__gpu=gpu).engine_config
        assert (config.max_num_seqs, config.max_num_batched_tokens) == (seqs, tokens)
    assert config.block_size == 16
    assert config.max_model_len == 131_072
    assert config.async_scheduling
    assert config.enable_prefix_caching
    assert config.free_unhashed_first


def test_engine_versions_differ_where_they_do() -> None:
    old = deployed(cluster__engine="vllm-0.19")
    new = deployed()
    assert not old.engine_config.free_unhashed_first
    utilization = {row.name: row.value for row in old.memory.rows}["gpu_memory_utilization"]
    assert utilization == pytest.approx(0.9)
    assert old.engine_config.num_gpu_blocks < new.engine_config.num_gpu_blocks


def test_scenario_goes_over_defaults_and_settings_say_so() -> None:
    found = deployed(engine__max_num_seqs=7, engine__watermark=0.01, engine__num_gpu_blocks=5000)
    assert found.engine_config.max_num_seqs == 7
    assert found.engine_config.watermark_blocks == 50
    origins = {setting.name: setting.origin for setting in found.settings}
    assert origins["max_num_seqs"] == origins["watermark"] == origins["num_gpu_blocks"] == "scenario"
    assert origins["block_size"] == "vllm-0.32"
    assert origins["max_num_batched_tokens"] == "vllm-0.32 for NVIDIA H200"


def test_smaller_budget_lowers_the_default_number_of_sequences() -> None:
    assert deployed(engine__max_num_batched_tokens=300).engine_config.max_num_seqs == 300


def test_without_chunked_prefill_a_step_holds_the_longest_prompt() -> None:
    config = deployed(engine__enable_chunked_prefill=False, engine__max_model_len=20_000).engine_config
    assert config.max_num_batched_tokens == 20_000


def test_block_derivation_adds_up() -> None:
    found = deployed()
    rows = {row.name: row.value for row in found.memory.rows}
    taken = sum(rows[name] for name in ("weights", "activations", "other", "CUDA graphs"))
    left = rows["GPU memory"] * rows["gpu_memory_utilization"] - taken
    assert rows["left for KV blocks"] == pytest.approx(left)
    assert rows["KV bytes a block"] == 16 * 57_344
    assert found.engine_config.num_gpu_blocks == int(left * GIB // rows["KV bytes a block"])
    assert any("derived from memory" in warning for warning in found.warnings)


def test_derivation_is_near_published_start_up_logs() -> None:
    """Llama-3-8B on an 80 GiB H100, utilisation 0.9: 53.29 GiB (vLLM PR 10511, which also counts 1.8 GiB of CUDA)."""
    found = deployed(
        cluster__gpu="h100-sxm",
        cluster__model="Llama-3.1-8B",
        cluster__engine="vllm-0.19",
        engine__max_num_seqs=256,
    )
    rows = {row.name: row.value for row in found.memory.rows}
    assert rows["weights"] == pytest.approx(14.96, abs=0.01)
    assert rows["activations"] == pytest.approx(1.26, abs=0.05)
    assert rows["left for KV blocks"] == pytest.approx(53.29 + 1.79 - 0.1, abs=0.1)


def test_more_blocks_than_fit_are_taken_with_a_warning() -> None:
    found = deployed(engine__num_gpu_blocks=10_000_000)
    assert found.engine_config.num_gpu_blocks == 10_000_000
    assert any("would fit" in warning for warning in found.warnings)


def test_tensor_parallelism_leaves_more_room_until_kv_heads_replicate() -> None:
    blocks = [
        deployed(cluster__model="DeepSeek-R1-Distill-Qwen-1.5B", cluster__tp=tp).engine_config.num_gpu_blocks
        for tp in (1, 2, 4)
    ]
    assert blocks[1] > 1.8 * blocks[0]
    assert blocks[2] < 1.1 * blocks[1]


def test_every_wrong_name_is_reported_at_once() -> None:
    found = refused(cluster__gpu="h200", cluster__model="Qwen3-9B", cluster__engine="vllm-0.31")
    assert set(found) == {"cluster.gpu", "cluster.model", "cluster.engine"}
    assert "'h200-sxm'" in found["cluster.gpu"]
    assert "'vllm-0.32'" in found["cluster.engine"] or "'vllm-0.19'" in found["cluster.engine"]


def test_sharding() -> None:
    found = refused(cluster__tp=3)["cluster.tp"]
    assert "28 query heads" in found
    assert "1, 2, 4" in found
    assert "cluster.tp" in refused(cluster__tp=8)  # 28 heads
    assert "all-reduce among 16" in refused(cluster__model="Qwen3-32B", cluster__tp=16)["cluster.tp"]
    assert deployed(cluster__model="Qwen3-32B", cluster__tp=16, latency={"model": "affine", "affine": {}}).gpus == 16


def test_model_that_does_not_fit() -> None:
    tall = refused(cluster__gpu="h100-sxm", cluster__model="Qwen3-32B", engine__gpu_memory_utilization=0.7)
    assert "61.0 GiB of weights" in tall["cluster.tp"]


def test_request_that_can_never_finish() -> None:
    # 100 + 1000 tokens, the last never computed: 1,099 tokens are 69 blocks beside the null block.
    assert "needs 69 KV blocks" in refused(engine__num_gpu_blocks=69)["engine.num_gpu_blocks"]
    assert deployed(engine__num_gpu_blocks=70).usable_blocks == 69


def test_request_longer_than_the_model() -> None:
    assert "exceed max_model_len = 4099" in refused(engine__max_model_len=4099)["engine.max_model_len"]
    assert deployed(engine__max_model_len=4100).engine_config.max_model_len == 4100
    found = refused(cluster__model="s1.1-7B", workload__max_tokens=40_000)
    assert "max_model_len = 32768" in found["workload.max_tokens"]


def test_fp8_is_refused_where_it_was_not_measured() -> None:
    assert "no fp8 matrix products" in refused(cluster__gpu="a100-sxm", cluster__dtype="fp8")["cluster.dtype"]
    assert "fp8 KV cache" in refused(cluster__gpu="a100-sxm", cluster__kv_dtype="fp8")["cluster.kv_dtype"]


def test_head_size_that_was_not_measured(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4200,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "head size 80" in refused(tmp_path, cluster__model="config.json")["cluster.model"]


def test_budget_below_sequences() -> None:
    found = refused(engine__max_num_seqs=512, engine__max_num_batched_tokens=256)
    assert "max_num_batched_tokens = 256 is below" in found["engine.max_num_seqs"]


def test_affine_model_is_all_there_is() -> None:
    affine = {
        "constant_us": 5.0,
        "per_token_us": 0.5,
        "per_decode_ctx_token_us": 0.002,
        "per_prefill_qk_pair_us": 0.001,
    }
    found = deployed(latency={"model": "affine", "affine": affine}, cluster__dtype="fp8")
    assert found.host == HostOverhead()
    shape = StepShape(2, 300, 200, (PrefillChunk(10, 5),), 3)
    assert found.step_model.step_ns(shape) == 5000 + 500 * 12 + 2 * 300 + (50 + 55)


def test_front_end_time() -> None:
    assert deployed().host.request_ns == 0
    assert deployed(frontend__ingest_s=0.002).host.request_ns == 2_000_000


def test_price() -> None:
    found = deployed()
    assert found.gpu_hour_usd is not None
    assert "2026" in found.price_source
    assert deployed(cluster__gpu_hour_usd=1.25).gpu_hour_usd == 1.25
    assert deployed(cluster__tp=2, cluster__replicas=3).gpus == 6


def test_throughput_bound_by_hand() -> None:
    """Flat steps of 10 ms, 50 seats: a request takes 999 of them and its prompt costs nothing more."""
    asked = scenario(
        latency={"model": "affine", "affine": {"constant_us": 10_000.0}}, engine__max_num_seqs=50, cluster__replicas=2
    )
    bound = deploy(asked, Path()).best_throughput(asked.workload, expected_work(asked, Path()))
    assert bound.batch == 50
    assert bound.limited_by == "max_num_seqs"
    assert bound.output_tokens_per_s == pytest.approx(2 * 50 * 100 * 1000 / 999, rel=1e-6)


def test_throughput_bound_follows_kv_blocks_and_prefill() -> None:
    def bound(**changes: object) -> float:
        asked = scenario(**changes)
        return deploy(asked, Path()).best_throughput(asked.workload, expected_work(asked, Path())).output_tokens_per_s

    assert bound(engine__num_gpu_blocks=300) < 0.5 * bound()
    long_prompt = {"distribution": "constant", "tokens": 20_000}
    cached = bound(workload__prompt=long_prompt, engine__num_gpu_blocks=50_000)
    computed = bound(workload__prompt=long_prompt, engine__num_gpu_blocks=50_000, engine__enable_prefix_caching=False)
    assert computed < 0.7 * cached


@pytest.mark.parametrize("name", assets.names("engines"))
def test_engine_files_name_their_sources(name: str) -> None:
    engine = load_engine_file(name)
    assert engine.host_source
    assert engine.memory_source
    assert engine.defaults.source
    assert all(entry.source for entry in engine.batch_defaults)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 9", "newer than"),
        ("block_size = 16", 'block_size = "many"', "defaults.block_size"),
        ("[graphs]", "[graphics]", "graphs"),
        ("schedule_step_us = 700.0", "schedule_step_us = -1.0", "host.schedule_step_us"),
        ("schema = 1", "schema =", "cannot be read"),
    ],
)
def test_bad_engine_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (assets.root("profiles") / "engines" / "vllm-0.32.toml").read_text()
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new))
    with pytest.raises(InputError) as error:
        read_engine_file(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_deploying_does_not_import_pandas_or_plots() -> None:
    code = (
        "import sys; from pathlib import Path; from ttsim_des.scenario.load import load_scenario;"
        "from ttsim_des.deployment import deploy; one = load_scenario('best-of-n'); deploy(one.scenario, one.base_dir);"
        "sys.exit(any(name in sys.modules for name in ('pandas', 'seaborn', 'matplotlib', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_verifier_has_problems_of_its_own() -> None:
    """Unknown names, and texts that it could not read, under the keys that the scenario has."""
    with pytest.raises(InputError) as error:
        run(load("best-of-n-prm", ["verifier.cluster.gpu=h100-sxn"]))
    (problem,) = error.value.problems
    assert (problem.key, problem.nearest) == ("verifier.cluster.gpu", "h100-sxm")
    with pytest.raises(InputError, match=r"for the verifier: prompts of up to .* exceed max_model_len = 4096"):
        run(load("best-of-n-prm", ["workload.max_tokens=16384"]))
