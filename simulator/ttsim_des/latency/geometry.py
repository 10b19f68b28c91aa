"""The geometry of a transformer, dense or with experts: what its weights, KV cache and kernels measure.

Read from a bundled TOML (profiles/models), from a TOML of the user's, or from a Hugging Face config.json.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ttsim_des import assets
from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.remembered import remembered

BYTES_PER_ELEMENT = {"bf16": 2, "fp8": 1}
EXPERT_BYTES = {**BYTES_PER_ELEMENT, "mxfp4": 17 / 32}
"""mxfp4: half a byte, and a byte of scale for 32 of them."""
ARCHITECTURES = (
    *("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"),
    *("Qwen3MoeForCausalLM", "GptOssForCausalLM"),
)

_VOCAB_PADDING = 64
"""vLLM pads the vocabulary to a multiple of 64 before it shards it (vocab_parallel_embedding.py)."""

_LARGEST = 1 << 24
"""No count of a model's geometry comes near this; beyond it the file is wrong."""


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """A decoder: grouped-query attention, gated MLP or experts, RMS norms."""

    name: str
    hidden: int
    intermediate: int
    """Columns of the MLP; with experts, of all experts of a token together."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    """Longest context that the model's configuration allows, in tokens."""
    tied: bool = False
    """lm_head is the embedding matrix."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMS norm of every query and key head before the rotary embedding."""
    experts: int = 0
    """Of each layer; 0: a dense MLP."""
    experts_per_token: int = 0
    expert_intermediate: int = 0
    expert_dtype: str = ""
    """Where experts are stored in a type of their own, whatever the scenario asks for: `mxfp4`."""
    window: int = 0
    """Tokens that attention of `window_layers` of the layers reaches back; the other layers see everything."""
    window_layers: int = 0
    source: str = ""

    def parameters(self) -> int:
        """All parameters, a tied lm_head counted once."""
        return self._sharded(1) + self._replicated()

    def weight_bytes(self, dtype: str, tp: int) -> int:
        """Bytes of weights on each GPU of a tensor-parallel group of `tp`.

        Matrices are sharded (experts by slices or whole: as many bytes), norms and routers replicated, KV projections
        replicated once `tp` exceeds the KV heads. With fp8 weights the embedding, lm_head, norms and routers stay in
        bf16.
        """
        wide = 2 * (self._vocabulary(tp) + self._replicated())
        experts = self._experts(tp)
        narrow = BYTES_PER_ELEMENT[dtype] * (self._sharded(tp) - self._vocabulary(tp) - experts)
        return wide + narrow + int(EXPERT_BYTES[self.expert_dtype or dtype] * experts)

    def kv_bytes_per_token(self, kv_dtype: str, tp: int) -> int:
        """Bytes of keys and values of one token on each GPU of the group, in the layers that keep them."""
        return (self.layers - self.window_layers) * self.kv_bytes_per_layer(kv_dtype, tp)

    def kv_bytes_per_layer(self, kv_dtype: str, tp: int) -> int:
        """Bytes of keys and values of one token and layer on each GPU of the group."""
        return 2 * self.kv_heads_per_gpu(tp) * self.head_dim * BYTES_PER_ELEMENT[kv_dtype]

    def heads_per_gpu(self, tp: int) -> int:
        """Query heads on each GPU; `tp` must divide the heads."""
        return self.heads // tp

    def kv_heads_per_gpu(self, tp: int) -> int:
        """KV heads on each GPU: at least one, replicated when `tp` exceeds them."""
        return max(1, self.kv_heads // tp)

    def vocab_per_gpu(self, tp: int) -> int:
        """Rows of the vocabulary matrices on each GPU, padding included."""
        padded = -(-self.vocab // _VOCAB_PADDING) * _VOCAB_PADDING
        return -(-padded // tp)

    def _vocabulary(self, tp: int) -> int:
        rows = self.vocab if tp == 1 else self.vocab_per_gpu(tp)
        return rows * self.hidden * (1 if self.tied else 2)

    def _sharded(self, tp: int) -> int:
        queries = self.heads_per_gpu(tp) * self.head_dim
        qkv = queries + 2 * self.kv_heads_per_gpu(tp) * self.head_dim
        attention = qkv * (self.hidden + self.qkv_bias) + queries * self.hidden
        mlp = 0 if self.experts else self.layers * 3 * self.hidden * -(-self.intermediate // tp)
        return self.layers * attention + mlp + self._experts(tp) + self._vocabulary(tp)

    def _experts(self, tp: int) -> int:
        each = 3 * self.hidden * self.expert_intermediate
        return self.layers * -(-self.experts * each // tp)

    def _replicated(self) -> int:
        per_layer = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0) + self.experts * self.hidden
        return self.layers * per_layer + self.hidden


def load_geometry(name_or_path: str, base_dir: Path) -> ModelGeometry:
    """A bundled model by name, or the geometry in a `.toml` or Hugging Face `.json` file (relative to `base_dir`).

    Raises InputError (key `cluster.model`) naming the file and what is wrong with it.
    """
    if name_or_path.endswith((".json", ".toml")):
        path = base_dir / name_or_path
    else:
        known = assets.names("models")
        if name_or_path not in known:
            raise bad_input(
                f"unknown model {name_or_path!r}",
                key="cluster.model",
                expected="a bundled model (see `ttsim-des list`), or the path of a config.json or geometry .toml",
                nearest=nearest_name(name_or_path, known),
            )
        path = assets.root("profiles") / "models" / f"{name_or_path}.toml"
    return read_geometry(path)


@remembered
def read_geometry(path: Path) -> ModelGeometry:
    """The geometry in one file; InputError when it cannot be read or makes no sense."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise bad_input(f"cannot read model file {path}: {_reason(error)}", key="cluster.model") from None
    try:
        table: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = path.suffix[1:].upper()
        raise bad_input(f"model file {path} is not valid {kind}: {error}", key="cluster.model") from None
    if not isinstance(table, dict):
        raise bad_input(f"model file {path} holds no table of settings", key="cluster.model")
    if path.suffix == ".json":
        return _checked(_from_hugging_face(table, path), path)
    known = {field.name for field in fields(ModelGeometry)}
    values = {"name": path.stem} | {key: value for key, value in table.items() if key in known}
    return _checked(values, path)


def _from_hugging_face(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of `ModelGeometry` from a Hugging Face config.json of a supported architecture."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else "none named"
    if architecture not in ARCHITECTURES:
        raise bad_input(
            f"{path}: architecture {architecture!r} is not supported",
            key="cluster.model",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            nearest=nearest_name(architecture, ARCHITECTURES),
        )
    table = config.get("quantization_config")
    quantised = str(table.get("quant_method", "something") if isinstance(table, dict) else table) if table else ""
    is_moe, is_oss = "Moe" in architecture, architecture == "GptOssForCausalLM"
    if quantised and not (is_oss and quantised == "mxfp4"):
        raise bad_input(
            f"{path}: weights quantised by {quantised} are not read from the file",
            key="cluster.model",
            expected='the config.json of the bf16 model; `cluster.dtype = "fp8"` says the rest',
        )
    heads = config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    derived = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    values = _experts_of(config, path) if is_moe or is_oss else {}
    if is_oss:
        kinds = config.get("layer_types")
        windowed = kinds.count("sliding_attention") if isinstance(kinds, list) else 0
        values |= {"expert_dtype": quantised, "window": config.get("sliding_window"), "window_layers": windowed}
    return {
        "name": path.parent.name if path.name == "config.json" and path.parent.name else path.stem,
        "hidden": hidden,
        "intermediate": config.get("intermediate_size"),
        "layers": config.get("num_hidden_layers"),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or derived,
        "vocab": config.get("vocab_size"),
        "max_position": config.get("max_position_embeddings"),
        "tied": config.get("tie_word_embeddings", False),
        "qkv_bias": is_qwen2 or config.get("attention_bias", False),
        "qk_norm": architecture in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
        "source": str(path),
        **values,
    }


def _experts_of(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields on experts; all layers must have them."""
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise bad_input(f"{path}: layers without experts among those with are not supported", key="cluster.model")
    experts = config.get("num_experts") or config.get("num_local_experts")
    each = config.get("moe_intermediate_size") or config.get("intermediate_size")
    top_k = config.get("num_experts_per_tok")
    together = top_k * each if isinstance(top_k, int) and isinstance(each, int) else None
    return {
        "experts": experts,
        "experts_per_token": top_k,
        "expert_intermediate": each,
        "intermediate": together,
    }


def _checked(values: dict[str, Any], path: Path) -> ModelGeometry:
    """The geometry of `values`, each of the right type and range; InputError otherwise."""
    for field in fields(ModelGeometry):
        value = values.get(field.name)
        if field.type == "int":
            least = 1 if field.default is MISSING else 0
            if value is None and least:
                raise bad_input(f"model file {path}: {field.name} is missing", key="cluster.model")
            if value is None:
                values.pop(field.name, None)
            elif isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
                raise bad_input(
                    f"model file {path}: {field.name} is {value!r}",
                    key="cluster.model",
                    expected=f"a whole number from {least} to {_LARGEST}",
                )
        elif value is not None and not isinstance(value, bool if field.type == "bool" else str):
            wanted = "true or false" if field.type == "bool" else "text"
            raise bad_input(f"model file {path}: {field.name} is {value!r}", key="cluster.model", expected=wanted)
    if values["heads"] % values["kv_heads"]:
        raise bad_input(
            f"model file {path}: {values['heads']} heads are not a multiple of {values['kv_heads']} KV heads",
            key="cluster.model",
        )
    geometry = ModelGeometry(**values)
    _check_parts(geometry, path)
    return geometry


def _check_parts(geometry: ModelGeometry, path: Path) -> None:
    """What must be given together, or not at all."""
    expert_fields = (geometry.experts, geometry.experts_per_token, geometry.expert_intermediate)
    if any(expert_fields) and not all(expert_fields):
        wanted = "experts, experts_per_token and expert_intermediate together"
        raise bad_input(f"model file {path}: half of what experts need", key="cluster.model", expected=wanted)
    if geometry.experts_per_token > geometry.experts:
        raise bad_input(f"model file {path}: more experts per token than experts", key="cluster.model")
    if geometry.expert_dtype and geometry.expert_dtype not in EXPERT_BYTES:
        wanted = f"one of {', '.join(EXPERT_BYTES)}"
        raise bad_input(
            f"model file {path}: expert_dtype is {geometry.expert_dtype!r}", key="cluster.model", expected=wanted
        )
    if bool(geometry.window) != bool(geometry.window_layers) or geometry.window_layers >= geometry.layers:
        wanted = "window and window_layers together, and at least one layer that sees everything"
        raise bad_input(f"model file {path}: windows make no sense", key="cluster.model", expected=wanted)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8 text"
