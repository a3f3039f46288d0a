"""Names in a folder of the hub's format, and how such a folder is put in place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""Class names in transformers and vLLM, by model_type."""


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder already there is moved aside first and deleted last."""
    open_to_umask(source)
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)


def open_to_umask(folder: Path) -> None:
    """Give safetensors files the mode of any new file: the library writes such as their owner alone may read."""
    sample = folder / ".mode"  # the umask itself can only be asked for by setting it, for all threads
    sample.touch()
    mode = sample.stat().st_mode & 0o777
    sample.unlink()
    for file in folder.glob("*.safetensors"):
        if not file.is_symlink():
            file.chmod(mode)
