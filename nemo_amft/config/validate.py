"""What hydra composed, as the frozen `schema.Config`; and back to plain data for config.yaml, with secrets masked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_amft.config import typed
from nemo_amft.config.plugins import Plugin, load_plugin
from nemo_amft.config.schema import Config
from nemo_amft.types import UserError

PLUGIN_SECTIONS = ("method", "controller", "task")
MASK = "********"
# Not max_new_tokens, tokenizer or eos_token_id.
_SECRET = re.compile(r"token(?![a-z]|_ids?$)|password|passwd|secret|api[_-]?key|credential", re.IGNORECASE)


def validate(composed: DictConfig | Mapping[str, Any]) -> Config:
    """The typed configuration. Unknown keys, wrong types and missing values raise UserError: one line, the key in front."""
    values = _plain(composed)
    # Plug-ins come last: their modules may import torch, and a typing mistake elsewhere should not wait for it.
    sections = {name: value for name, value in values.items() if name not in PLUGIN_SECTIONS}
    config = typed.build(Config, sections | dict.fromkeys(PLUGIN_SECTIONS), "", list(typed.keys_of(Config)))
    for name in PLUGIN_SECTIONS:
        if values.get(name) is None:
            raise UserError(f"{name}: missing; choose one with {name}=NAME")
    plugins = {name: load_plugin(name, values[name]) for name in PLUGIN_SECTIONS}
    return dataclasses.replace(config, **plugins)


def resolved(config: Config) -> dict[str, Any]:
    """Plain data with every default filled in, secrets masked: what config.yaml holds and the terminal shows."""
    return _dump(config)


def mask_argument(argument: str) -> str:
    """A command-line argument `key=value` without its secret, whether the key says so or one inside {key: value}."""
    key, _, value = argument.partition("=")
    secret = _is_secret(key) or (value.startswith(("{", "[")) and _SECRET.search(value))
    return f"{key}={MASK}" if value and secret else argument


def _is_secret(key: str) -> bool:
    return _SECRET.search(key.rpartition(".")[2]) is not None


def _plain(composed: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.create(composed), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'config'}: {str(error.msg or error).splitlines()[0]}") from error
    return {str(name): value for name, value in values.items()}


def _dump(value: Any) -> Any:
    if isinstance(value, Plugin):
        return {"_target_": value.target, **_dump(value.config)}
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: MASK if item is not None and _is_secret(str(name)) else _dump(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_dump(item) for item in value]
    return value
