"""config.json of a hub folder: read as transformers reads it, overridden, and written for transformers 4 as well as 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from nemo_amft.config.free_keys import unknown_fields
from nemo_amft.config.hub_json import read_object, refuse_gaps, refuse_quantised, refuse_sizes, refuse_two_ropes
from nemo_amft.models.architecture import FAMILIES
from nemo_amft.types import UserError

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"


def read_config(folder: Path, overrides: dict[str, Any], trust_remote_code: bool, trained: bool) -> PreTrainedConfig:
    """The config in `folder`, with fields replaced by `overrides`.

    Raises:
        UserError: no JSON object, a value of another type than transformers takes, an unknown override; where it is to be
            `trained`, quantised weights and old and new keys for rotary positions that disagree.
    """
    file = folder / CONFIG_FILE
    values = read_object(file)
    refuse_sizes(values, str(file))
    if trained:
        refuse_quantised(values, file)
        refuse_two_ropes(values, overrides, file)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers has a class for each way in which a config can be wrong
        raise UserError(f"{file}: {_one_line(error)}") from error
    if trained and config.model_type in FAMILIES:
        refuse_gaps(values, file)
    return _overridden(config, overrides) if overrides else config


def _overridden(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedConfig:
    known = config.to_dict()
    for message in unknown_fields(overrides, known):
        raise UserError(message)
    try:
        return type(config).from_dict(_merged(known, overrides))
    except Exception as error:  # as above
        raise UserError(f"model.config_overrides: {_one_line(error)}") from error


def _merged(known: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`known` with fields replaced, those of a config within it one by one."""
    values, rope = {**known, **overrides}, known.get("rope_parameters") or {}
    for key, value in overrides.items():
        if key.endswith("_config") and isinstance(value, dict) and isinstance(known[key], dict):
            values[key] = _merged(known[key], value)
    if isinstance(new := overrides.get("rope_parameters"), dict) and "rope_theta" in rope:  # else it falls to the default
        values["rope_parameters"] = rope = {"rope_theta": rope["rope_theta"], **new}
    if "rope_theta" in overrides:  # lives among rope_parameters since transformers 5
        values["rope_parameters"] = {**rope, "rope_theta": values.pop("rope_theta")}
    return values


def write_config(config: PreTrainedConfig, dtype: torch.dtype | None, folder: Path) -> None:
    """Write config.json with rotary positions and dtype under the keys of transformers 4 as well as 5."""
    values = json.loads(config.to_json_string())
    if dtype is not None:
        values["dtype"] = str(dtype).removeprefix("torch.")
    if "dtype" in values:
        values["torch_dtype"] = values["dtype"]
    rope = values.get("rope_parameters") or {}
    if "rope_type" in rope:  # not one for each kind of layer
        scaled = rope["rope_type"] != "default"
        values["rope_theta"] = rope["rope_theta"]
        values["rope_scaling"] = {k: v for k, v in rope.items() if k not in ("rope_theta", "type")} if scaled else None
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def generation_end_tokens(folder: Path) -> tuple[int, ...]:
    """eos_token_id of generation_config.json, which may be a list; empty without the file. Raises UserError."""
    file = folder / GENERATION_FILE
    found = read_object(file).get("eos_token_id") if file.is_file() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(not isinstance(i, int) or isinstance(i, bool) for i in ids):
        raise UserError(f"{file}: eos_token_id: found {found!r}, expected a token id, or a list of them")
    return tuple(ids)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
