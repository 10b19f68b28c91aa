"""The geometry of a dense transformer: what its weights, KV cache and kernels measure.

Read from a bundled TOML (profiles/models), from a TOML of the user's, or from a Hugging Face config.json.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ttsim_des import assets
from ttsim_des.errors import bad_input, nearest_name

BYTES_PER_ELEMENT = {"bf16": 2, "fp8": 1}
ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")

_VOCAB_PADDING = 64
"""vLLM pads the vocabulary to a multiple of 64 before it shards it (vocab_parallel_embedding.py)."""

_LARGEST = 1 << 24
"""No count of a model's geometry comes near this; beyond it the file is wrong."""


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """A dense decoder: grouped-query attention, gated MLP, RMS norms."""

    name: str
    hidden: int
    intermediate: int
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
    source: str = ""

    def parameters(self) -> int:
        """All parameters, a tied lm_head counted once."""
        return self._sharded(1) + self._replicated()

    def weight_bytes(self, dtype: str, tp: int) -> int:
        """Bytes of weights on each GPU of a tensor-parallel group of `tp`.

        Matrices are sharded, norms replicated, KV projections replicated once `tp` exceeds the KV heads. With
        fp8 weights the embedding, lm_head and norms stay in bf16.
        """
        wide = 2 * (self._vocabulary(tp) + self._replicated())
        return wide + BYTES_PER_ELEMENT[dtype] * (self._sharded(tp) - self._vocabulary(tp))

    def kv_bytes_per_token(self, kv_dtype: str, tp: int) -> int:
        """Bytes of keys and values of one token on each GPU of the group."""
        return 2 * self.layers * self.kv_heads_per_gpu(tp) * self.head_dim * BYTES_PER_ELEMENT[kv_dtype]

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
        mlp = 3 * self.hidden * -(-self.intermediate // tp)
        return self.layers * (attention + mlp) + self._vocabulary(tp)

    def _replicated(self) -> int:
        per_layer = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
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
    if config.get("quantization_config"):
        raise bad_input(f"{path}: quantised weights are not supported", key="cluster.model", expected="bf16 weights")
    heads = config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    derived = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    is_qwen2 = architecture == "Qwen2ForCausalLM"
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
        "qk_norm": architecture == "Qwen3ForCausalLM",
        "source": str(path),
    }


def _checked(values: dict[str, Any], path: Path) -> ModelGeometry:
    """The geometry of `values`, each of the right type and range; InputError otherwise."""
    for field in fields(ModelGeometry):
        value = values.get(field.name)
        if field.type == "int":
            if value is None:
                raise bad_input(f"model file {path}: {field.name} is missing", key="cluster.model")
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
                raise bad_input(
                    f"model file {path}: {field.name} is {value!r}",
                    key="cluster.model",
                    expected=f"a whole number from 1 to {_LARGEST}",
                )
        elif value is not None and not isinstance(value, bool if field.type == "bool" else str):
            wanted = "true or false" if field.type == "bool" else "text"
            raise bad_input(f"model file {path}: {field.name} is {value!r}", key="cluster.model", expected=wanted)
    if values["heads"] % values["kv_heads"]:
        raise bad_input(
            f"model file {path}: {values['heads']} heads are not a multiple of {values['kv_heads']} KV heads",
            key="cluster.model",
        )
    return ModelGeometry(**values)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8 text"
