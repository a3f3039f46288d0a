"""The plan's numbers against numbers known otherwise, and what the command prints and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from nemo_amft.config.architecture import architecture_of
from nemo_amft.config.load import load
from nemo_amft.config.schema import ModelConfig
from nemo_amft.plan import plan
from nemo_amft.planning import batch_table
from nemo_amft.planning.activations import activations, largest_micro_batch
from nemo_amft.planning.engine import engine_memory
from nemo_amft.planning.footprint import RESERVED, footprint
from nemo_amft.planning.hardware import GPUS
from nemo_amft.planning.memory import static_memory
from nemo_amft.planning.parameters import stages
from nemo_amft.types import UserError

A100 = GPUS["a100_80gb"]


def planned(*overrides, name="quickstart"):
    return load(["--config-name", name, *overrides], check=False)


def math(*overrides):
    """The paper's run, by sequences a micro-batch and without a token budget."""
    return planned("model.micro_batch_tokens=null", "model.micro_batch_size=4", *overrides, name="amft_math")


FULL = ("model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1")


# ---- the model's shape


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


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_all_ranks_together_hold_the_model_once_and_every_norm_on_each_tensor_rank(tp, pp):
    model = math(f"model.tensor_model_parallel_size={tp}", f"model.pipeline_model_parallel_size={pp}").model
    architecture = architecture_of(model)  # its vocabulary is a multiple of 128, so nothing is padded
    norms = (2 * architecture.num_hidden_layers + 1) * architecture.hidden_size
    held = tp * sum(sum(map(sum, chunks)) for chunks in stages(architecture, model))
    assert held == architecture.parameters + (tp - 1) * norms


def test_tied_embeddings_are_held_twice_by_a_pipeline_and_once_without():
    for pp, copies in ((1, 1), (2, 2)):
        config = planned("model.scratch.tie_word_embeddings=true", f"model.pipeline_model_parallel_size={pp}",
                         "model.tensor_model_parallel_size=1")  # fmt: skip
        architecture = architecture_of(config.model)
        held = sum(sum(map(sum, chunks)) for chunks in stages(architecture, config.model))
        assert held == architecture.parameters + (copies - 1) * architecture.embedding_parameters


# ---- batches


def test_the_batch_of_the_papers_run():
    rows = dict(batch_table(math("model.tensor_model_parallel_size=4")))
    assert rows["rollouts a step"] == "128 prompts x 8 samples = 1024 sequences"
    assert rows["a data-parallel rank, an update"] == "64 sequences, micro-batches of 4: 16"
    assert rows["tokens a step, at most"] == f"{1024 * (1024 + 8192) + 128 * (1024 + 8192):,}"


@pytest.mark.parametrize(
    ("method", "rollouts", "demonstrations"),
    [
        ("sft", None, "128;"),
        ("grpo", 1024, "none"),
        ("luffy", 896, "at most 128, of prompts"),
        ("tapo", 1024, "none"),
        ("amft", 1024, "128;"),
    ],
)
def test_a_method_draws_and_imitates_what_its_batch_says(method, rollouts, demonstrations):
    rows = dict(batch_table(math(f"method={method}", "model.tensor_model_parallel_size=4")))
    assert rows["demonstrations a step"].startswith(demonstrations)
    assert rows.get("rollouts a step", "").endswith(f"= {rollouts} sequences" if rollouts else "")
    assert ("rollouts a step" in rows) == bool(rollouts)


def test_a_token_budget_is_shown_in_place_of_the_micro_batch_size():
    rows = dict(batch_table(math("model.micro_batch_tokens=20000", "model.tensor_model_parallel_size=4")))
    assert rows["a data-parallel rank, an update"] == "64 sequences, micro-batches of 20,000 tokens: 32 at full length"


# ---- static memory (tests/parallel/test_plan_memory.py compares with real models)


def test_bytes_a_parameter_of_each_consumer():
    # 8 processes, tensor parallel 2: the optimiser is split over 4.
    config = planned("method=amft_grpo", "trainer.precision=bf16", "trainer.devices=8", "model.scratch.hidden_size=2048")
    found = static_memory(config, architecture_of(config.model), 0)
    a_parameter = {
        "policy weights": 2, "policy gradients, fp32": 4, "policy main weights, fp32": 4 / 4,
        "policy Adam moments, fp32": 8 / 4, "kept difference": 4 / 4,
    }  # fmt: skip
    assert found.device == pytest.approx({name: n * found.parameters for name, n in a_parameter.items()}, rel=1e-3)


def test_the_critic_the_reference_and_a_trace_each_add_their_own():
    base = planned("method=amft_grpo")
    architecture = architecture_of(base.model)
    without = static_memory(base, architecture, 0).device
    reference = static_memory(planned("method=amft_grpo", "method.rl.kl_coef=0.1"), architecture, 0).device
    assert reference["reference weights"] == without["policy weights"]
    traced = static_memory(planned("method=amft_grpo", "controller.meta_gradient.trace_decay=0.5"), architecture, 0).device
    assert traced["kept difference"] == 2 * without["kept difference"]
    assert "kept difference" not in static_memory(planned("method=amft_grpo", "controller.eta_mu=0"), architecture, 0).device
    critic = static_memory(planned(), architecture, 0).device
    assert without.items() < critic.items()


def test_an_offloaded_optimiser_leaves_its_moments_to_the_host():
    config = math("optim.optimizer_cpu_offload=true", "optim.optimizer_offload_fraction=0.75")
    architecture = architecture_of(config.model)
    here, whole = static_memory(config, architecture, 0), static_memory(math(), architecture, 0)
    assert here.device["policy Adam moments, fp32"] == pytest.approx(whole.device["policy Adam moments, fp32"] / 4)
    assert here.host["policy optimiser"] == pytest.approx(0.75 * 2 * whole.device["policy Adam moments, fp32"])
    assert here.device["critic Adam moments, fp32"] == whole.device["critic Adam moments, fp32"]


# ---- activations


def test_full_recomputation_keeps_one_hidden_state_a_layer_and_token():
    config = math("model.tensor_model_parallel_size=1", *FULL)
    architecture = architecture_of(config.model)
    positions = largest_micro_batch(config).positions
    # A middle stage's rank keeps nothing else but the state it sends on.
    spread = replace(config, model=replace(config.model, pipeline_model_parallel_size=4))
    found = activations(spread, architecture, 2, "transformer_engine")
    assert found.kept == 2 * (28 // 4 + 1) * positions * 3584 * 2  # two micro-batches in flight


def test_sequence_parallelism_divides_what_tensor_parallelism_leaves_whole():
    """Korthikanti et al. 2022, table 2: with both, everything a layer keeps is divided by the tensor-parallel size."""
    kept = {}
    for tp, sequence in ((1, False), (4, False), (4, True)):
        config = math(
            "model.pipeline_model_parallel_size=2",
            f"model.tensor_model_parallel_size={tp}",
            f"model.sequence_parallel={sequence}",
        )
        kept[tp, sequence] = activations(config, architecture_of(config.model), 0, "transformer_engine").kept
    assert kept[4, True] == pytest.approx(kept[1, False] / 4, rel=1e-3)
    assert kept[4, True] < 0.7 * kept[4, False]


@pytest.mark.parametrize(("virtual", "in_flight"), [("null", (4, 3, 2, 1)), ("7", (31, 29, 27, 25))])
def test_micro_batches_in_flight_are_those_of_megatrons_schedules(virtual, in_flight):
    """1F1B: as many as stages follow, and its own. Interleaved: 2 (p - r - 1) + (v - 1) p warm-up passes and one more
    (Narayanan et al. 2021, section 2.2; Megatron's get_pp_rank_microbatches)."""
    config = math(*FULL, "model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=4",
                  f"model.virtual_pipeline_model_parallel_size={virtual}")  # fmt: skip
    architecture = architecture_of(config.model)
    chunk = 7 // (7 if virtual == "7" else 1) + 1
    state = largest_micro_batch(config).positions * 3584 * 2
    for stage, expected in enumerate(in_flight[:3]):
        assert activations(config, architecture, stage, "transformer_engine").kept == expected * chunk * state


# ---- the engine


def test_a_token_of_qwen_7b_takes_56_kib_of_cache():
    # 28 layers x keys and values x 4 heads x 128 x 2 bytes.
    for tp, kib in ((1, 56), (2, 28), (4, 14), (7, 14)):  # a rank of seven holds a whole head
        config = math(f"rollout.tensor_model_parallel_size={tp}")
        assert engine_memory(config, architecture_of(config.model), A100).token == kib * 1024


def test_an_engine_takes_its_share_of_the_gpu_and_the_cache_is_what_is_left():
    config = math("rollout.gpu_memory_utilization=0.5", "rollout.tensor_model_parallel_size=2")
    engine = engine_memory(config, architecture_of(config.model), A100)
    assert engine.total == pytest.approx(0.5 * A100.memory_gib * 2**30)
    assert engine.full_sequences == engine.cache // (28 * 1024 * 9216)


def test_a_weight_sync_takes_a_bucket_or_the_largest_parameter_and_nothing_where_the_model_is_on_one_rank():
    taken = {}
    for mib, tp in ((256, 1), (256, 4), (2048, 4)):
        config = math(f"rollout.sync_bucket_mb={mib}", f"model.tensor_model_parallel_size={tp}")
        taken[mib, tp] = engine_memory(config, architecture_of(config.model), A100).bucket
    embedding = 152064 * 3584 * 2
    assert taken == {(256, 1): 0, (256, 4): 2 * embedding, (2048, 4): 2**31 + embedding}


def test_the_policys_own_decoding_has_no_second_weights_and_a_cache_for_its_batch():
    config = planned("rollout=megatron", "rollout.max_num_seqs=16")
    engine = engine_memory(config, architecture_of(config.model), None)
    # fp32, 4 layers, one of two key-value heads of 32 a rank; 16 sequences of 48 tokens.
    assert (engine.weights, engine.cache) == (0, 16 * 48 * 2 * 4 * 32 * 4)


# ---- phases and the command


def test_the_engine_and_the_activations_are_never_there_together_on_a_gpu():
    config = math()
    found = footprint(config, architecture_of(config.model), A100)
    resident = found.static.total + RESERVED
    assert found.phases["generation"] == resident + found.engine.total
    assert found.phases["training, policy"] == resident + found.policy.total
    assert found.peak == max(found.phases.values())


def test_the_papers_run_fits_64_a100_and_says_so(capsys):
    assert plan(planned(name="amft_math")) == 0
    shown = capsys.readouterr()
    assert "of 79.10 GiB on a100_80gb, 4.00 GiB set aside" in shown.out
    assert "nodes x processes                8 x 8 = 64" in shown.out
    assert shown.err == ""


def test_what_does_not_fit_is_refused_with_the_greatest_consumer_and_an_override_that_fits(capsys):
    crowded = ("rollout.gpu_memory_utilization=0.9",)
    assert plan(math(*crowded)) == 2
    error = capsys.readouterr().err
    assert "does not fit: generation takes" in error
    assert "greatest consumer: engine cache" in error
    suggestion = error.split("; try ")[1].split(" (peak")[0].split()
    assert plan(math(*crowded, *suggestion)) == 0


def test_a_job_that_no_layout_saves_is_told_so(capsys):
    assert plan(math("trainer.num_nodes=1", "trainer.devices=1", "model.tensor_model_parallel_size=1",
                     "rollout.tensor_model_parallel_size=1")) == 2  # fmt: skip
    assert "no layout of these processes fits: more nodes" in capsys.readouterr().err


def test_an_engine_without_room_for_one_sequence_is_refused(capsys):
    assert plan(planned("rollout.kv_cache_gb=0.00005")) == 2
    assert "rollout.kv_cache_gb: found 5e-05" in capsys.readouterr().err


def test_sizes_that_the_engine_cannot_divide_are_refused(capsys):
    assert plan(math("rollout.tensor_model_parallel_size=14", "trainer.num_nodes=7")) == 2
    assert (
        "rollout.tensor_model_parallel_size: found 14, expected a divisor or a multiple of the model's 4"
        in capsys.readouterr().err
    )


def test_without_a_gpu_named_fp32_on_one_node_is_planned_for_a_cpu_and_never_refused_for_memory(capsys):
    assert plan(planned("model.scratch.hidden_size=16384", "model.scratch.num_hidden_layers=64")) == 0
    shown = capsys.readouterr().out
    assert "of this machine's" in shown
    assert "estimated seconds" not in shown
    assert plan(planned("model.scratch.hidden_size=16384", "model.scratch.num_hidden_layers=64"), gpu="h100") == 2


def test_bad_arguments_of_its_own_are_one_line():
    for arguments, message in (
        ({"gpu": "tpu"}, "gpu: found tpu, expected one of: cpu, a100_40gb"),
        ({"fill": "2"}, "fill: found 2, expected a number above 0 and at most 1"),
        ({"search": ""}, "--search: needs a GPU"),
    ):
        with pytest.raises(UserError, match=message):
            plan(planned(), **arguments)


def test_refusals_are_shown_beside_the_tables_and_end_in_status_2(capsys):
    assert plan(planned("method=amft_grpo", "data.samples_per_prompt=1")) == 2
    shown = capsys.readouterr()
    assert "rollouts a step" in shown.out
    assert "memory in each phase" in shown.out
    assert shown.err.startswith("nemo_amft: error: data.samples_per_prompt: found 1")
    assert plan(planned("model.micro_batch_size=0")) == 2
    assert capsys.readouterr().out == ""


def test_a_plan_is_for_any_number_of_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert plan(planned("trainer.num_nodes=4", "trainer.devices=8")) == 0


def test_planning_imports_no_torch():
    code = (
        "import sys\n"
        "from nemo_amft.planning import report, search, timing, footprint, hardware, flops, target, refusals\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "layout",
    ["trainer.devices=3 trainer.num_nodes=1", "model.tensor_model_parallel_size=8", "model.pipeline_model_parallel_size=8",
     "rollout.tensor_model_parallel_size=28", "trainer.num_nodes=1 trainer.devices=2"],
)  # fmt: skip
def test_a_layout_that_does_not_divide_is_refused_with_one_that_does_and_nothing_is_computed_of_it(layout, capsys):
    assert plan(math(*layout.split())) == 2
    shown = capsys.readouterr()
    assert "memory in each phase" not in shown.out
    assert "expected a" in shown.err
    if layout.startswith("model"):
        suggestion = shown.err.split("; try ")[1].split(" (peak")[0].split()
        assert plan(math(*layout.split(), *suggestion)) == 0
