"""An exported config.json says the same to transformers 4 and 5, and files are as open as the umask."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig, Qwen2Config

from nemo_amft.models.hub_config import write_config
from nemo_amft.models.hub_files import replace_folder

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("config", "theta", "scaling"),
    [
        (LlamaConfig(rope_parameters={"rope_theta": 5e5, **LLAMA3}), 5e5, LLAMA3),
        (Qwen2Config(rope_parameters={"rope_theta": 1e6, "rope_type": "default"}), 1e6, None),
    ],
)
def test_a_config_has_the_keys_of_transformers_4_as_well(config, theta, scaling, tmp_path):
    config.eos_token_id = [3, 4]
    write_config(config, torch.bfloat16, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["rope_theta"], written["rope_scaling"]) == (theta, scaling)
    assert (written["torch_dtype"], written["dtype"], written["eos_token_id"]) == ("bfloat16", "bfloat16", [3, 4])
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.rope_parameters == config.rope_parameters
    assert (read.dtype, read.eos_token_id) == (torch.bfloat16, [3, 4])


def test_files_are_as_open_as_the_umask(tmp_path):
    (tmp_path / "partial").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "partial" / "model.safetensors")
    before = os.umask(0o027)
    try:
        replace_folder(tmp_path / "partial", tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o640
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]
