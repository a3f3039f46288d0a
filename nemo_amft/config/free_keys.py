"""Mappings whose keys are another library's: what it does not know is refused before anything is built.

The libraries are imported only where a key is not among those that everybody uses, as that takes seconds.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from nemo_amft.config import typed
from nemo_amft.config.architecture import hub_config
from nemo_amft.config.hub_json import SIZES
from nemo_amft.config.schema import Config

WANDB = frozenset(
    ("name", "save_dir", "version", "offline", "dir", "id", "anonymous", "project", "log_model", "prefix", "checkpoint_name",
     "entity", "group", "tags", "notes", "mode", "job_type", "config", "resume", "reinit", "settings", "save_code")
)  # fmt: skip
"""Arguments of Lightning's WandbLogger, and of wandb.init, to which it hands on the others."""


def unknown_keys(config: Config) -> Iterator[str]:
    """One line for each key in model.config_overrides and exp_manager.wandb_logger_kwargs that nobody would read."""
    model, loggers = config.model, config.exp_manager
    if model.path is not None and not model.config_overrides.keys() <= SIZES | {"rope_theta"}:
        yield from unknown_fields(model.config_overrides, _fields(hub_config(model.path) or {}))
    others = loggers.wandb_logger_kwargs.keys() - WANDB
    if others and importlib.util.find_spec("wandb") is not None:
        import wandb

        others -= inspect.signature(wandb.init).parameters.keys()
    for name in sorted(others):
        near = typed.nearest(name, WANDB)[0]
        yield f"exp_manager.wandb_logger_kwargs.{name}: no argument of WandbLogger or wandb.init; did you mean {near}?"
    if loggers.create_wandb_logger and importlib.util.find_spec("wandb") is None:
        yield "exp_manager.create_wandb_logger: found true, expected the package wandb, which is not installed"


def wrong_sizes(overrides: Mapping[str, Any]) -> Iterator[str]:
    """One line for each size of an architecture in model.config_overrides that is none."""
    for name in overrides.keys() & SIZES:
        if type(overrides[name]) is not int or overrides[name] < 1:
            yield f"model.config_overrides.{name}: found {typed.show(overrides[name])}, expected an integer of at least 1"


def unknown_fields(
    overrides: Mapping[str, Any], known: Mapping[str, Any], section: str = "model.config_overrides"
) -> Iterator[str]:
    """One line for each key of `overrides` that a hub config does not have. `known` is that config as a mapping, empty where it
    is not known; both may nest."""
    if not known:
        return
    rope = known.get("rope_parameters")
    fields = [*known, *(["rope_theta"] if rope else [])]  # lives among rope_parameters since transformers 5
    for name, value in overrides.items():
        if name not in fields:
            kind = f"the config of a {known['model_type']} model" if "model_type" in known else section
            yield f"{section}.{name}: {kind} has no such field; did you mean {typed.nearest(name, fields)[0]}?"
        elif name == "rope_parameters" and isinstance(value, Mapping):
            yield from unknown_fields(value, _rope_parameters() | (rope or {}), f"{section}.{name}")
        elif name.endswith("_config") and isinstance(value, Mapping):  # others have keys of their own, such as id2label
            yield from unknown_fields(value, known[name] or {}, f"{section}.{name}")


def _fields(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A hub config with all its fields; empty where transformers does not know the model, or refuses the file."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[values["model_type"]].from_dict(dict(values)).to_dict()
    except Exception:  # each model's config raises its own kinds; the builder, which reads the same file, has the words
        return {}


def _rope_parameters() -> dict[str, Any]:
    from transformers.modeling_rope_utils import RopeParameters

    return dict.fromkeys(get_type_hints(RopeParameters))
