"""config.json of a hub folder: read as transformers reads it, overridden, and written for transformers 4 as well as 5."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from nemo_amft.config.hub_json import read_object, refuse_quantised, refuse_sizes, refuse_two_ropes
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
    return _overridden(config, overrides) if overrides else config


def _overridden(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedConfig:
    known = config.to_dict()
    values = {**known, **overrides}
    for key in overrides.keys() - known.keys() - {"rope_theta"}:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"model.config_overrides.{key}: the config of a {config.model_type} model has no such field{hint}")
    refuse_sizes(overrides, "model.config_overrides")
    if "rope_parameters" in overrides and isinstance(overrides["rope_parameters"], dict):  # else theta falls to the default
        values["rope_parameters"] = {"rope_theta": known["rope_parameters"]["rope_theta"], **overrides["rope_parameters"]}
    if "rope_theta" in overrides:  # lives among rope_parameters since transformers 5
        values["rope_parameters"] = {**values["rope_parameters"], "rope_theta": values.pop("rope_theta")}
    try:
        return type(config).from_dict(values)
    except Exception as error:  # as above
        raise UserError(f"model.config_overrides: {_one_line(error)}") from error


def write_config(config: PreTrainedConfig, dtype: torch.dtype | None, folder: Path) -> None:
    """Write config.json with rotary positions and dtype under the keys of transformers 4 as well as 5."""
    values = json.loads(config.to_json_string())
    if dtype is not None:
        values["dtype"] = str(dtype).removeprefix("torch.")
    if "dtype" in values:
        values["torch_dtype"] = values["dtype"]
    if rope := values.get("rope_parameters"):
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
