"""Finds the hub model a run starts from, or makes a small one from random weights."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nemo_amft.config import launcher
from nemo_amft.config.hub_json import read_object
from nemo_amft.config.schema import ModelConfig, ScratchConfig
from nemo_amft.data.character_tokenizer import save_character_tokenizer
from nemo_amft.data.template import with_defaults
from nemo_amft.models.architecture import Architecture, refuse_unsupported
from nemo_amft.models.hub_config import CONFIG_FILE, generation_end_tokens, read_config, write_config
from nemo_amft.models.hub_files import ARCHITECTURES, INDEX_FILE, SINGLE_FILE, replace_folder
from nemo_amft.models.hub_reader import check_weights
from nemo_amft.models.hub_tokenizer import TOKENIZER_FILE, difference, read_tokenizer
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
    tokenizer_path: Path
    """Folder that the tokenizer was read from."""
    end_token_ids: tuple[int, ...]
    """Tokens that end a response: the tokenizer's end of sequence, which demonstrations end with, and the model's own."""

    @cached_property
    def num_token_ids(self) -> int:
        """Ids that the policy chooses among: up to the tokenizer's largest, added tokens included. Published models often have
        more rows than that in embeddings and head, as padding; no log-prob counts these, and none is ever drawn."""
        return min(_largest_id(self.tokenizer) + 1, self.config.get_text_config().vocab_size)


def prepare_hub_model(model: ModelConfig, folder: Path, trained: bool = True) -> HubModel:
    """The model named by `model.path`, or one with seeded random weights that is written to `folder`.

    `folder` is also where config.json goes if `model.config_overrides` change it (weights are linked). What is there already is
    used again, so rank 0 calls this first and the other ranks after it. Not `trained`: any model will do that vLLM can run.

    Raises:
        UserError: one line: not found, no safetensors, or others than the config asks for, broken files, unknown override, a
            model that cannot be trained.
    """
    transformers_logging.disable_progress_bar()
    if model.path is None:
        source = path = _made_once(Path(folder), _scratch_origin(model), lambda target: _write_scratch(model.scratch, target))
        config = read_config(path, {}, False, trained)
        if trained:
            refuse_unsupported(config, model)
    else:
        source = _local_folder("model.path", model.path, model.trust_remote_code)
        config, path = _checked(model, f"model.path={model.path}", source, Path(folder), trained)
    if model.tokenizer is not None:
        source = _local_folder("model.tokenizer", model.tokenizer, model.trust_remote_code)
    tokenizer = _read_tokenizer(model, source)
    if trained:
        _refuse_more_tokens(tokenizer, config, source)
    return HubModel(config, tokenizer, path, source, _end_tokens(tokenizer, config, path))


def prepare_critic(model: ModelConfig, name: str, folder: Path, policy: HubModel) -> HubModel:
    """The model that critic.path=`name` stands for, as `prepare_hub_model`. Its body is what counts, with or without a head: a
    reward model's is left aside, its scale being its own. It reads the policy's tokens.

    Raises:
        UserError: as there; or its tokenizer is another than the policy's.
    """
    named = f"critic.path={name}"
    source = _local_folder("critic.path", name, model.trust_remote_code)
    config, path = _checked(model, named, source, Path(folder), body_only=True)
    if (source / TOKENIZER_FILE).is_file():
        own, _ = read_tokenizer(source, model.trust_remote_code)
        if (text := difference(own, policy.tokenizer)) is not None:
            raise UserError(f"{named}: its tokenizer takes {text!r} for other tokens than the policy's, expected the same")
    _refuse_more_tokens(policy.tokenizer, config, source)
    return dataclasses.replace(policy, config=config, path=path)


def _checked(
    model: ModelConfig, named: str, source: Path, folder: Path, trained: bool = True, body_only: bool = False
) -> tuple[PreTrainedConfig, Path]:
    """The config in `source`, and the folder to read it from: `folder`, where config.json has to be another."""
    _refuse_without_safetensors(source, named)
    changes = dict(model.config_overrides)
    config = read_config(source, changes, model.trust_remote_code, trained)
    if trained:
        refuse_unsupported(config, model)
        check_weights(source, Architecture.from_hub(config), body_only)
        if config.architectures != (own := [ARCHITECTURES[config.model_type]]) and not body_only:
            config.architectures = changes["architectures"] = own  # vLLM takes a body's name for a model that does not write
    if not changes:
        return config, source
    origin = {"path": str(source.resolve()), "config_overrides": changes}
    return config, _made_once(folder, origin, lambda target: _link_with_config(source, target, config))


def _made_once(folder: Path, origin: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """Fill `folder` by `make(partial)` and put it in place, unless it is there already and was made from the same."""
    origin = json.loads(json.dumps(origin))
    record = folder / ORIGIN_FILE
    if record.is_file():
        if (found := read_object(record)) != origin:
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


def _local_folder(key: str, name: str, trust_remote_code: bool) -> Path:
    """`name` if it is a folder, else the hub's files of that id, downloaded to (or found in) the local cache."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.jinja", *(["*.safetensors"] if key != "model.tokenizer" else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns + (["*.py"] if trust_remote_code else [])))
    except Exception as error:  # not found, gated, no network, no such form of name: the hub's client has a class for each
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{key}={name}: no such folder, and not to be had from the hub ({reason})") from error


def _refuse_without_safetensors(folder: Path, named: str) -> None:
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{named}: an adapter (adapter_config.json), expected whole weights: merge it into its base first")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{named}: has no {CONFIG_FILE}")
    if (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file():
        return
    if pickles := sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))):
        raise UserError(f"{named}: only pickled weights ({pickles[0]}), which can run code; expected {SINGLE_FILE}")
    if gguf := sorted(path.name for path in folder.glob("*.gguf")):
        raise UserError(
            f"{named}: only GGUF ({gguf[0]}), expected {SINGLE_FILE}: nemo_amft.convert gguf makes such a folder of it"
        )
    raise UserError(f"{named}: has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _link_with_config(source: Path, target: Path, config: PreTrainedConfig) -> None:
    """A folder of links to every file of `source`, with a config.json of its own."""
    for file in source.iterdir():
        if file.is_file() and file.name not in (CONFIG_FILE, ORIGIN_FILE):
            os.symlink(file.resolve(), target / file.name)
    write_config(config, config.dtype, target)


def _read_tokenizer(model: ModelConfig, folder: Path) -> PreTrainedTokenizerBase:
    tokenizer, note = read_tokenizer(folder, model.trust_remote_code)
    if note is not None and model.path is not None and launcher.rank() == 0:
        print(f"nemo_amft: note: {note}", file=sys.stderr)
    if model.chat_template is not None:
        try:
            tokenizer.chat_template = Path(model.chat_template).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"model.chat_template={model.chat_template}: not readable ({error})") from error
    if model.chat_template_kwargs:
        if tokenizer.chat_template is None:
            raise UserError(f"model.chat_template_kwargs: found some, but {folder} has no chat template to read them")
        taken = tokenizer.special_tokens_map
        tokenizer.chat_template = with_defaults(tokenizer.chat_template, model.chat_template_kwargs, taken)
    return tokenizer


def _refuse_more_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, folder: Path) -> None:
    largest = _largest_id(tokenizer)
    if largest >= config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has ids up to {largest}, the model's vocab_size is {config.vocab_size}")


def _largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values(), default=-1)


def _end_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, folder: Path) -> tuple[int, ...]:
    text = config.get_text_config()
    own = text.eos_token_id
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list | tuple) else [own]), *generation_end_tokens(folder)]
    return tuple(dict.fromkeys(i for i in ids if i is not None and 0 <= i < text.vocab_size))
