"""Finds the hub model a run starts from, or makes a small one from random weights."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from nemo_amft.config.free_keys import unknown_fields
from nemo_amft.config.schema import ModelConfig, ScratchConfig
from nemo_amft.data.character_tokenizer import save_character_tokenizer
from nemo_amft.data.template import with_defaults
from nemo_amft.models.architecture import refuse_unsupported
from nemo_amft.models.hub_files import INDEX_FILE, SINGLE_FILE, replace_folder
from nemo_amft.types import UserError

ORIGIN_FILE = "made_from.json"
"""In a folder that `prepare_hub_model` made: what it was made from, so that a restarted run can use it again."""


@dataclass(frozen=True)
class HubModel:
    """A model in hub format on this machine, its config with overrides applied, and its tokenizer."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    path: Path
    """Folder whose config.json is `config`, for a rollout engine that reads files."""


def prepare_hub_model(model: ModelConfig, folder: Path, trained: bool = True) -> HubModel:
    """The model named by `model.path`, or one with seeded random weights that is written to `folder`.

    `folder` is also where config.json goes if `model.config_overrides` change it (weights are linked). What is there already is
    used again, so rank 0 calls this first and the other ranks after it. Not `trained`: any model will do that vLLM can run.

    Raises:
        UserError: one line: not found, no safetensors, broken config, unknown override, a model that cannot be trained.
    """
    transformers_logging.disable_progress_bar()
    if model.path is None:
        path = _made_once(Path(folder), _scratch_origin(model), lambda target: _write_scratch(model.scratch, target))
    else:
        path = _local_folder(model)
        _refuse_without_safetensors(path, model.path)
    config = _read_config(path, model.trust_remote_code)
    if model.config_overrides:
        _override(config, model.config_overrides)
        origin = {"path": str(path.resolve()), "config_overrides": model.config_overrides}
        path = _made_once(Path(folder), origin, lambda target, source=path: _link_with_config(source, target, config))
    if trained:
        refuse_unsupported(config, model)
    tokenizer = _read_tokenizer(model, path)
    if len(tokenizer) > (size := config.get_text_config().vocab_size):
        raise UserError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the model's vocab_size is {size}")
    return HubModel(config, tokenizer, path)


def _made_once(folder: Path, origin: dict[str, Any], make) -> Path:
    """Fill `folder` by `make(partial)` and put it in place, unless it is there already and was made from the same."""
    origin = json.loads(json.dumps(origin))
    record = folder / ORIGIN_FILE
    if record.is_file():
        if (found := json.loads(record.read_text())) != origin:
            changed = sorted(key for key in found.keys() | origin.keys() if found.get(key) != origin.get(key))
            raise UserError(
                f"{folder}: made by an earlier run with other model settings ({', '.join(changed)}); use a new run directory"
            )
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial)
    (partial / ORIGIN_FILE).write_text(json.dumps(origin, indent=2))
    replace_folder(partial, folder)
    return folder


def _scratch_origin(model: ModelConfig) -> dict[str, Any]:
    return {"scratch": dataclasses.asdict(model.scratch)}


def _write_scratch(scratch: ScratchConfig, folder: Path) -> None:
    if scratch.hidden_size % (heads := scratch.num_attention_heads):
        raise UserError(f"model.scratch.hidden_size={scratch.hidden_size} is no multiple of num_attention_heads={heads}")
    save_character_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {key: value for key, value in dataclasses.asdict(scratch).items() if key != "family"}
    config = AutoConfig.for_model(
        scratch.family,
        **sizes,
        head_dim=scratch.hidden_size // heads,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scratch.seed)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def _local_folder(model: ModelConfig) -> Path:
    """`model.path` if it is a folder, else the hub's files of that id, downloaded to (or found in) the local cache."""
    if Path(model.path).is_dir():
        return Path(model.path)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", *(["*.py"] if model.trust_remote_code else [])]
    try:
        return Path(snapshot_download(model.path, allow_patterns=patterns))
    except Exception as error:  # not found, gated, no network, no such form of name: the hub's client has a class for each
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"model.path={model.path}: no such folder, and not to be had from the hub ({reason})") from error


def _refuse_without_safetensors(folder: Path, named: str) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path={named}: has no config.json")
    if (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file():
        return
    if pickles := sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))):
        raise UserError(f"model.path={named}: only pickled weights ({pickles[0]}), which can run code; expected {SINGLE_FILE}")
    raise UserError(f"model.path={named}: has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _read_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: {' '.join(str(error).split())[:300]}") from error


def _override(config: PreTrainedConfig, overrides: dict[str, Any]) -> None:
    for message in unknown_fields(overrides, config.to_dict()):
        raise UserError(message)
    for key, value in overrides.items():
        if key == "rope_theta":  # lives among rope_parameters since transformers 5
            config.rope_parameters = {**config.rope_parameters, "rope_theta": float(value)}
        elif isinstance(part := getattr(config, key), PreTrainedConfig) and isinstance(value, dict):
            _override(part, value)
        else:
            setattr(config, key, value)


def _link_with_config(source: Path, target: Path, config: PreTrainedConfig) -> None:
    """A folder of links to every file of `source`, with a config.json of its own."""
    for file in source.iterdir():
        if file.is_file() and file.name not in ("config.json", ORIGIN_FILE):
            os.symlink(file.resolve(), target / file.name)
    config.save_pretrained(target)


def _read_tokenizer(model: ModelConfig, folder: Path) -> PreTrainedTokenizerBase:
    name = model.tokenizer or str(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: no tokenizer to be read ({' '.join(str(error).split())[:300]})") from error
    if model.chat_template is not None:
        try:
            tokenizer.chat_template = Path(model.chat_template).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"model.chat_template={model.chat_template}: not readable ({error})") from error
    if model.chat_template_kwargs:
        if tokenizer.chat_template is None:
            raise UserError(f"model.chat_template_kwargs: found some, but {name} has no chat template to read them")
        taken = tokenizer.special_tokens_map
        tokenizer.chat_template = with_defaults(tokenizer.chat_template, model.chat_template_kwargs, taken)
    return tokenizer
