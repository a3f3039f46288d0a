"""JSON files of a hub folder as they are written, and what is wrong with them that can be told without importing torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_amft.types import UserError

SIZES = frozenset(
    ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
     "max_position_embeddings", "head_dim")
)  # fmt: skip
"""Keys of config.json that are whole numbers above 0."""

_MAY_BE_NULL = ("num_key_value_heads", "head_dim")
_NEVER_LEFT_OUT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError: the file, and where it breaks or what it holds instead."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: found a JSON {type(values).__name__}, expected an object")
    return values


def refuse_half_pairs(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError for half of a surrogate pair, which JSON may hold and no file in UTF-8: an export would fail."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{file}: found half of a surrogate pair in a text, expected texts that UTF-8 has") from None


def refuse_sizes(values: Mapping[str, Any], source: str) -> None:
    """Raise UserError for a size that is no whole number: arithmetic with it fails, or goes wrong, far from here."""
    for key in sorted(SIZES):
        value = values.get(key, 1)
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not whole and not (value is None and key in _MAY_BE_NULL):
            raise UserError(f"{source}: {key}: found {value!r}, expected a whole number above 0")


def refuse_gaps(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError for a size that is left out: transformers takes its class's default, which the tensors may even fit."""
    for key in _NEVER_LEFT_OUT:
        if key not in values:
            raise UserError(f"{file}: {key}: found nothing, expected a whole number above 0")


def refuse_quantised(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError for a checkpoint whose weights are not the numbers that its tensors hold."""
    for place in (values, values.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            found = place.get(key) if isinstance(place, Mapping) else None
            if found:
                names = ("quant_method", "quant_algo", "format", "quantization_format")
                given = [found.get(name) for name in names] if isinstance(found, Mapping) else []
                if isinstance(found, Mapping) and (found.get("load_in_8bit") or found.get("load_in_4bit")):
                    given.append("bitsandbytes")  # which wrote no name at first
                method = next((name for name in given if name), "a quantisation without a name")
                raise UserError(f"{file}: {key}: found {method}, expected weights in fp32, bf16 or fp16, not quantised ones")


def refuse_two_ropes(values: Mapping[str, Any], overrides: Mapping[str, Any], file: Path) -> None:
    """Raise UserError where the keys of transformers 4 for rotary positions (rope_theta, rope_scaling) and that of 5
    (rope_parameters) disagree: each version, and vLLM, would read another model. `overrides` may decide."""
    if "rope_parameters" in overrides:
        return
    places = {key: values.get(key) for key in ("rope_scaling", "rope_parameters")}
    given = {key: rope for key, rope in places.items() if isinstance(rope, Mapping) and rope}
    thetas = [values.get("rope_theta"), *(rope.get("rope_theta") for rope in given.values())]
    given_thetas = [theta for theta in thetas if theta is not None]
    different = [theta for i, theta in enumerate(given_thetas) if theta not in given_thetas[:i]]
    if len(different) > 1 and "rope_theta" not in overrides:
        raise UserError(
            f"{file}: rope_theta: found {' and '.join(map(str, different))}, at the top and among other rotary keys, "
            "expected one value (model.config_overrides.rope_theta chooses)"
        )
    if len(given) == 2 and _scaling(given["rope_scaling"]) != _scaling(given["rope_parameters"]):
        raise UserError(
            f"{file}: rope_scaling: found {_scaling(given['rope_scaling'])}, and {_scaling(given['rope_parameters'])} in "
            "rope_parameters, expected the same (model.config_overrides.rope_parameters chooses)"
        )


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return {"rope_type": kind, **{key: rope[key] for key in sorted(rope.keys() - {"type", "rope_type", "rope_theta"})}}
