"""The shape of a dense transformer, as far as sizes and divisibility go, known without loading weights or importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_amft.config.hub_json import read_object, refuse_sizes
from nemo_amft.config.schema import ModelConfig

SCRATCH_VOCABULARY = 128
"""Rows of a scratch model's embeddings, to plan with: the character tokenizer's 104, padded."""

# Public configs of models that conf/ names, for planning where the hub is out of reach. A config at hand always goes first.
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen2.5-Math-7B": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    },
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
        "max_position_embeddings": 32768,
    },
    "SmolLM2-135M-Instruct": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Numbers of a Qwen2, Qwen3 or Llama model, by the hub's names."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    head_dim: int

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def layer_matrix_parameters(self) -> int:
        """Parameters of one layer that multiply tokens: query, key, value and output projections, and the gated MLP."""
        return self.hidden_size * (2 * self.query_size + 2 * self.key_value_size + 3 * self.intermediate_size)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: matrices, biases, norms."""
        biases = self.query_size + 2 * self.key_value_size if self.model_type == "qwen2" else 0
        head_norms = 2 * self.head_dim if self.model_type == "qwen3" else 0
        return self.layer_matrix_parameters + biases + head_norms + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one vocabulary matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        matrices = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * self.layer_parameters + matrices * self.embedding_parameters + self.hidden_size


def architecture_of(model: ModelConfig) -> Architecture | None:
    """The architecture of the policy, or None where its config is neither on this machine nor known.

    Raises:
        UserError: config.json is no JSON object, or a size in it is no whole number.
    """
    if model.path is None:
        scratch = model.scratch
        return from_hub(vars(scratch) | {"model_type": scratch.family, "vocab_size": SCRATCH_VOCABULARY})
    values = hub_config(model.path)
    return from_hub({**values, **model.config_overrides}) if values else None


def hub_config(path: str) -> dict[str, Any] | None:
    """The hub config of a model, if it is on this machine or known."""
    return _local_hub_config(path) or KNOWN.get(Path(path).name)


def _local_hub_config(path: str) -> dict[str, Any] | None:
    folder = Path(path)
    file = folder / "config.json"
    if not folder.is_dir():
        # Only the cache is asked, never the network: a plan must not hang on a machine without one.
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(path, "config.json")
        except HFValidationError:
            return None
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    if not file.is_file():
        return None
    values = read_object(file)
    refuse_sizes(values, str(file))
    return values


def from_hub(values: Mapping[str, Any]) -> Architecture | None:
    """The architecture that a hub config describes, or None if it is of another kind."""
    try:
        heads = values["num_attention_heads"]
        return Architecture(
            model_type=values["model_type"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=values.get("num_key_value_heads") or heads,
            vocab_size=values["vocab_size"],
            tie_word_embeddings=values.get("tie_word_embeddings", False),
            max_position_embeddings=values["max_position_embeddings"],
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        )
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # a hub config of another kind: nothing to plan with, and for the model builder to refuse
