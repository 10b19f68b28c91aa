import json
import tomllib
from pathlib import Path

import pytest

from ttsim_des import assets
from ttsim_des.errors import InputError
from ttsim_des.latency.geometry import load_geometry, read_geometry

QWEN2_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("name", assets.names("models"))
def test_bundled_model_has_its_published_parameter_count(name: str) -> None:
    file = assets.root("profiles") / "models" / f"{name}.toml"
    published = tomllib.loads(file.read_text())["published_parameters"]
    assert load_geometry(name, Path()).parameters() == pytest.approx(published, rel=0.005)


def test_r1_distill_1_5b_is_untied_unlike_its_base() -> None:
    distilled = load_geometry("DeepSeek-R1-Distill-Qwen-1.5B", Path())
    base = load_geometry("Qwen2.5-1.5B", Path())
    assert distilled.parameters() - base.parameters() == 151936 * 1536
    assert distilled.weight_bytes("bf16", 1) == pytest.approx(3.55e9, rel=0.005)


def test_kv_heads_replicate_beyond_their_number() -> None:
    small = load_geometry("DeepSeek-R1-Distill-Qwen-1.5B", Path())
    assert [small.kv_bytes_per_token("bf16", tp) for tp in (1, 2, 4)] == [28672, 14336, 14336]
    assert load_geometry("Qwen2.5-14B", Path()).kv_bytes_per_token("bf16", 1) == 196608


def test_tensor_parallel_shards_hold_the_whole_model() -> None:
    geometry = load_geometry("Qwen3-32B", Path())
    replicated = 2 * (geometry.layers * (2 * geometry.hidden + 2 * geometry.head_dim) + geometry.hidden)
    whole = geometry.weight_bytes("bf16", 1)
    for tp in (2, 4, 8):
        assert geometry.weight_bytes("bf16", tp) * tp == whole + (tp - 1) * replicated
    assert geometry.weight_bytes("fp8", 1) < 0.6 * whole


def test_hugging_face_config_equals_the_bundled_geometry(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN2_CONFIG))
    loaded = load_geometry("config.json", tmp_path)
    bundled = load_geometry("DeepSeek-R1-Distill-Qwen-7B", Path())
    assert loaded.parameters() == bundled.parameters()
    assert (loaded.heads, loaded.kv_heads, loaded.head_dim) == (28, 4, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "'Qwen2MoeForCausalLM' is not supported"),
        ({"architectures": []}, "not supported"),
        ({"hidden_size": "big"}, "hidden is 'big'"),
        ({"num_hidden_layers": -3}, "layers is -3"),
        ({"num_hidden_layers": 10**30}, "layers is 1000"),
        ({"vocab_size": None}, "vocab is missing"),
        ({"num_key_value_heads": 5}, "not a multiple of 5"),
        ({"tie_word_embeddings": "no"}, "tied is 'no'"),
        ({"quantization_config": {"bits": 4}}, "quantised by something"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN2_CONFIG | change))
    with pytest.raises(InputError) as error:
        load_geometry(str(file), tmp_path)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert error.value.problems[0].key == "cluster.model"


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\xff\xfe" * 3])
def test_file_that_holds_no_config(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="model file"):
        read_geometry(file)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        load_geometry("DeepSeek-R1-Distill-Qwen-7b", Path())
    assert error.value.problems[0].nearest == "DeepSeek-R1-Distill-Qwen-7B"
    with pytest.raises(InputError, match="cannot read model file"):
        load_geometry("missing/config.json", Path())
