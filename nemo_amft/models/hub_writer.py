"""Writes a folder in the hub's format: safetensors in one file or several with an index, config.json, tokenizer files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nemo_amft.models.hub_config import GENERATION_FILE, write_config
from nemo_amft.models.hub_files import ARCHITECTURES, INDEX_FILE, SINGLE_FILE, replace_folder
from nemo_amft.models.hub_model import HubModel
from nemo_amft.models.hub_tokenizer import write_tokenizer

SHARD_BYTES = 5 * 10**9
"""Size of a safetensors file, and so the host memory that saving takes."""

WRITE_ERRORS = (OSError, SafetensorError)
"""What a full or missing disk raises."""


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

    def give_up(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self, hub: HubModel) -> None:
        """Put the folder in place, with config, tokenizer and generation_config.json of `hub`."""
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
        config = type(hub.config).from_dict(hub.config.to_dict())
        config.architectures = [ARCHITECTURES[config.model_type]]
        write_config(config, self.dtype, self.partial)
        write_tokenizer(hub.tokenizer, hub.tokenizer_path, self.partial)
        if (hub.path / GENERATION_FILE).is_file():
            shutil.copyfile(hub.path / GENERATION_FILE, self.partial / GENERATION_FILE)
        replace_folder(self.partial, self.folder)
