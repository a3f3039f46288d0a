"""Where a run's model comes from, and what is refused before anything is built."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig, Qwen2Config, Qwen3MoeConfig

from nemo_amft.config.schema import ModelConfig, ScratchConfig
from nemo_amft.models.architecture import Architecture, refuse_unsupported
from nemo_amft.models.hub_model import prepare_hub_model
from nemo_amft.types import UserError

SCRATCH = ScratchConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch") / "model"
    return prepare_hub_model(ModelConfig(scratch=SCRATCH), folder)


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        prepare_hub_model(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_a_scratch_model_follows_from_its_seed(family, tmp_path):
    model = ModelConfig(scratch=replace(SCRATCH, family=family))
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        hub = prepare_hub_model(replace(model, scratch=replace(model.scratch, seed=seed)), tmp_path / name)
        assert (hub.config.model_type, hub.config.hidden_size, hub.path) == (family, 32, tmp_path / name)
        assert hub.config.eos_token_id == hub.tokenizer.eos_token_id
        weights.append(load_file(hub.path / "model.safetensors")["model.embed_tokens.weight"])
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_a_scratch_model_is_made_once(made):
    before = (made.path / "model.safetensors").stat().st_mtime_ns
    prepare_hub_model(ModelConfig(scratch=SCRATCH), made.path)
    assert (made.path / "model.safetensors").stat().st_mtime_ns == before
    assert "(scratch); use a new run directory" in refusal(ModelConfig(scratch=replace(SCRATCH, seed=4)), made.path)


def test_overrides_reach_config_and_folder(made, tmp_path):
    overrides = {"rope_theta": 40000, "max_position_embeddings": 2048}
    hub = prepare_hub_model(ModelConfig(path=str(made.path), config_overrides=overrides), tmp_path / "base")
    assert Architecture.from_hub(hub.config).rope_theta == 40000.0
    written = json.loads((hub.path / "config.json").read_text())
    assert written["max_position_embeddings"] == 2048
    assert written["rope_parameters"]["rope_theta"] == 40000.0
    assert os.path.samefile(hub.path / "model.safetensors", made.path / "model.safetensors")
    nameless = ModelConfig(path=str(made.path), config_overrides={"model_type": None})
    assert "model_type 'None'" in refusal(nameless, tmp_path / "x")
    assert "hidden_size" in refusal(ModelConfig(path=str(made.path), config_overrides={"hiden_size": 1}), tmp_path / "x")


def test_a_chat_template_file_replaces_the_tokenizers_own(made, tmp_path):
    (tmp_path / "template.jinja").write_text("{{ messages[0]['content'] }}!")
    model = ModelConfig(path=str(made.path), chat_template=str(tmp_path / "template.jinja"))
    tokenizer = prepare_hub_model(model, tmp_path / "base").tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello!"
    assert "none.jinja" in refusal(replace(model, chat_template="none.jinja"), tmp_path / "base")


def test_folders_that_hold_no_usable_model_are_refused(made, tmp_path, monkeypatch):
    model = ModelConfig(path=str(tmp_path))
    assert "config.json" in refusal(model, tmp_path / "base")
    (tmp_path / "config.json").write_text((made.path / "config.json").read_text())
    assert "neither model.safetensors" in refusal(model, tmp_path / "base")
    (tmp_path / "pytorch_model.bin").touch()
    assert "pickled weights (pytorch_model.bin)" in refusal(model, tmp_path / "base")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text("{broken")
    assert "config.json" in refusal(model, tmp_path / "base")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: 1 / 0)
    assert "model.path=no/such" in refusal(ModelConfig(path="no/such"), tmp_path / "base")


QWEN2 = Qwen2Config(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, intermediate_size=96)


@pytest.mark.parametrize(
    ("config", "model", "words"),
    [
        (Qwen3MoeConfig(), ModelConfig(), ("qwen3_moe", "mixture of experts")),
        (LlamaConfig(mlp_bias=True), ModelConfig(), ("mlp_bias",)),
        (LlamaConfig(attention_bias=True), ModelConfig(), ("attention_bias",)),
        (LlamaConfig(hidden_act="gelu"), ModelConfig(), ("hidden_act", "gelu", "silu")),
        (LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), ModelConfig(), ("linear",)),
        (Qwen2Config(num_hidden_layers=4, use_sliding_window=True, max_window_layers=2), ModelConfig(), ("sliding", "layer 2")),
        (QWEN2, ModelConfig(tensor_model_parallel_size=3), ("tensor_model_parallel_size=3", "num_attention_heads=8")),
        (QWEN2, ModelConfig(tensor_model_parallel_size=4), ("tensor_model_parallel_size=4", "num_key_value_heads=2")),
        (QWEN2, ModelConfig(pipeline_model_parallel_size=3), ("pipeline_model_parallel_size=3", "num_hidden_layers=4")),
        (QWEN2, ModelConfig(expert_model_parallel_size=2), ("expert_model_parallel_size=2",)),
        (QWEN2, ModelConfig(recompute_granularity="full"), ("recompute_method",)),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(config, model, words):
    with pytest.raises(UserError) as refusal:
        refuse_unsupported(config, model)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_padded_vocabulary_does_not_depend_on_usual_tensor_parallel_sizes():
    architecture = Architecture.from_hub(Qwen2Config(vocab_size=100))
    assert [architecture.padded_vocab_size(tp) for tp in (1, 2, 4, 8, 3)] == [128, 128, 128, 128, 384]
