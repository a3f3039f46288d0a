"""The plan's numbers against numbers known otherwise."""

from __future__ import annotations

import json

import pytest

from nemo_amft.config.architecture import architecture_of
from nemo_amft.config.load import load
from nemo_amft.config.schema import ModelConfig
from nemo_amft.plan import plan
from nemo_amft.planning import batch_table, memory_table, rank_parameters

PLAIN = ["--config-name", "quickstart"]


def planned(*overrides):
    return load([*PLAIN, *overrides], check=False)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),  # safetensors metadata on the hub
        ("runs/models/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_known_models_have_the_parameters_that_the_hub_counts(path, parameters):
    assert architecture_of(ModelConfig(path=path)).parameters == parameters


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_formula_counts_what_transformers_builds(family, tied):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 128, "max_position_embeddings": 64, "tie_word_embeddings": tied, "head_dim": 8,
    }  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    ours = architecture_of(
        planned(
            f"model.scratch.family={family}", f"model.scratch.tie_word_embeddings={tied}", "model.scratch.hidden_size=32",
            "model.scratch.intermediate_size=48", "model.scratch.num_hidden_layers=3", "model.scratch.num_attention_heads=4",
        ).model
    )  # fmt: skip
    assert ours.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_config_at_hand_goes_before_the_known_ones_and_overrides_before_both(tmp_path):
    folder = tmp_path / "Qwen2.5-Math-7B"
    folder.mkdir()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 4, **sizes}))
    found = architecture_of(ModelConfig(path=str(folder), config_overrides={"max_position_embeddings": 16}))
    assert (found.hidden_size, found.num_key_value_heads, found.max_position_embeddings) == (8, 2, 16)


def test_the_batch_of_the_papers_run():
    rows = dict(batch_table(load(["--config-name", "amft_math"], check=False)))
    assert rows["rollouts a step"] == "128 prompts x 8 samples = 1024 sequences"
    assert rows["a data-parallel rank, an update"] == "64 sequences, micro-batches of 4: 16"
    assert rows["tokens a step, at most"] == f"{1024 * (1024 + 8192) + 128 * (1024 + 8192):,}"


def test_memory_of_a_rank_is_bytes_a_parameter_times_parameters():
    rows = dict(
        memory_table(
            planned("method=amft_grpo", "trainer.precision=bf16", "trainer.devices=8", "model.scratch.hidden_size=2048")
        )
    )
    held = int(rows["parameters"].split("(")[1].split()[0].replace(",", ""))
    expected = {
        "policy weights": 2,
        "policy gradients (fp32)": 4,
        "policy optimizer state": 12 / 4,  # 8 processes, tensor parallel 2: split over 4
        "kept difference": 4 / 4,
    }
    for name, size in expected.items():
        assert float(rows[name].split()[0]) == pytest.approx(held * size / 1024**3, abs=1e-3), name
    assert float(rows["static memory a rank"].split()[0]) == pytest.approx(held * 10 / 1024**3, abs=1e-3)


def test_a_pipeline_stage_holds_one_of_two_vocabulary_matrices():
    whole, stage = (
        planned("trainer.devices=1", "model.tensor_model_parallel_size=1"),
        planned("model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=2"),
    )
    architecture = architecture_of(whole.model)
    assert rank_parameters(architecture, whole) == architecture.parameters
    layers = architecture.num_hidden_layers * architecture.layer_parameters
    assert rank_parameters(architecture, stage) == layers // 2 + architecture.embedding_parameters + architecture.hidden_size


def test_refusals_are_shown_beside_the_tables_and_end_in_status_2(capsys):
    assert plan(planned("method=amft_grpo", "data.samples_per_prompt=1")) == 2
    shown = capsys.readouterr()
    assert "rollouts a step" in shown.out
    assert shown.err.startswith("nemo_amft: error: data.samples_per_prompt: found 1")
    assert plan(planned("model.micro_batch_size=0")) == 2
    assert capsys.readouterr().out == ""


def test_a_plan_is_for_any_number_of_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert plan(planned("trainer.num_nodes=4", "trainer.devices=8")) == 0
