"""Folders in the hub's format: safetensors in one file or several with an index, config.json, tokenizer files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nemo_amft.types import UserError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

SHARD_BYTES = 5 * 10**9
"""Size of a safetensors file, and so the host memory that saving takes."""

WRITE_ERRORS = (OSError, SafetensorError)
"""What a full or missing disk raises."""

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""Class names in transformers and vLLM, by model_type."""


class HubReader:
    """The safetensors of a folder, opened as they are needed and closed with `stack`."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        self.folder, self.stack, self.opened = folder, stack, {}
        if (index := folder / INDEX_FILE).is_file():
            try:
                self.file_of = dict(json.loads(index.read_text())["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{index}: not an index of safetensors files ({error!r})") from error
            self.source = index
        elif (single := folder / SINGLE_FILE).is_file():
            self.source = single
            self.file_of = dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        else:
            raise UserError(f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}")

    def check(self, shapes: dict[str, tuple[int, ...]], ignored: str | None) -> None:
        """Compare names, and the shapes in the files' headers, with what the config asks for. Reads no tensor."""
        # Old Llama files carry the rotary frequencies, which follow from the config.
        found = {name for name in self.file_of if not name.endswith(".rotary_emb.inv_freq")}
        wanted = {name for name in shapes if name != ignored}
        for kind, names in (("has no tensor", wanted - found), ("has an unexpected tensor", found - wanted - {ignored})):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise UserError(f"{self.source}: {kind} {min(names)!r}{more}; config.json asks for {len(wanted)} tensors")
        for name in sorted(wanted):
            try:
                shape = tuple(self._open(self.file_of[name]).get_slice(name).get_shape())
            except SafetensorError as error:
                raise UserError(f"{self.folder / self.file_of[name]}: has no tensor {name!r}, which the index names") from error
            if shape != shapes[name]:
                place = self.folder / self.file_of[name]
                raise UserError(f"{place}: tensor {name!r} has shape {shape}; config.json makes it {shapes[name]}")

    def read(self, name: str) -> Tensor:
        return self._open(self.file_of[name]).get_tensor(name)

    def _open(self, file: str):
        if file not in self.opened:
            try:
                self.opened[file] = self.stack.enter_context(safe_open(self.folder / file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self.folder / file}: not readable as safetensors ({error})") from error
        return self.opened[file]


class HubWriter:
    """Collects tensors into files of `SHARD_BYTES` and puts the folder in place at the end."""

    def __init__(self, folder: Path):
        self.folder, self.partial = folder, folder.with_name(folder.name + ".partial")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.file_names: list[list[str]] = []
        self.dtype: torch.dtype | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > SHARD_BYTES:
            self._flush()
        self.pending[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self.pending_bytes += size
        self.total_bytes += size
        self.dtype = tensor.dtype

    def _flush(self) -> None:
        save_file(self.pending, self.partial / f"part-{len(self.file_names)}", metadata={"format": "pt"})
        self.file_names.append(list(self.pending))
        self.pending, self.pending_bytes = {}, 0

    def finish(self, hub_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self._flush()
        count = len(self.file_names)
        weight_map = {}
        for i, names in enumerate(self.file_names):  # the hub's file names carry the count, known only now
            file = SINGLE_FILE if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            os.replace(self.partial / f"part-{i}", self.partial / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            (self.partial / INDEX_FILE).write_text(json.dumps(index, indent=2))
        config = type(hub_config).from_dict(hub_config.to_dict())
        config.dtype, config.architectures = self.dtype, [ARCHITECTURES[config.model_type]]
        config.save_pretrained(self.partial)
        tokenizer.save_pretrained(self.partial)
        replace_folder(self.partial, self.folder)


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder already there is moved aside first and deleted last."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)
