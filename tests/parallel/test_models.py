"""Policy and critic give transformers' numbers and gradients, whatever the layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nemo_amft.config.schema import ModelConfig
from nemo_amft.models.builder import build_critic, build_policy
from nemo_amft.models.hub_model import HubModel
from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights, save_hub_model, unwrap
from nemo_amft.parallel import groups, platform
from nemo_amft.types import UserError
from tests.parallel.ranks import run_ranks
from tests.parallel.tiny_models import (
    read_tiny_config,
    read_tiny_model,
    reference_log_prob_and_entropy,
    tiny_configs,
    write_tiny_model,
)

TEMPERATURE = 0.7
NUM_TOKEN_IDS = 90
"""Of a tokenizer with fewer ids than the model has rows."""
FULL_RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
LAYOUTS = {
    "one_rank": (1, ModelConfig()),
    "tp2": (2, ModelConfig(tensor_model_parallel_size=2)),
    "tp2_sequence_parallel": (2, ModelConfig(tensor_model_parallel_size=2, sequence_parallel=True)),
    "tp2_full_recompute": (2, ModelConfig(tensor_model_parallel_size=2, sequence_parallel=True, **FULL_RECOMPUTE)),
    "selective_recompute": (1, ModelConfig(recompute_granularity="selective")),
    "pp2": (2, ModelConfig(pipeline_model_parallel_size=2)),
    "pp2_interleaved": (2, ModelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)),
    "tp2_pp2": (4, ModelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: write_tiny_model(name, root / name) for name in tiny_configs()}


@dataclass(frozen=True)
class Micro:
    """A micro-batch: tokens, labels, mask (B, S), and a random weight for each entry of the output (2, B, S)."""

    tokens: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor


def micro_batches() -> list[Micro]:
    """Four micro-batches of two lengths; one of them trains on nothing."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for i, length in enumerate((12, 8, 8, 12)):
        tokens = torch.randint(NUM_TOKEN_IDS, (2, length + 1), generator=generator)
        mask = torch.rand(2, length, generator=generator) < (0.6 if i != 2 else 0.0)
        weights = torch.randn(2, 2, length, generator=generator)
        batches.append(Micro(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask, weights))
    return batches


def run_schedule(chunks: list, batches: list[Micro], forward, loss, forward_only: bool = False) -> list[torch.Tensor]:
    """Megatron's own schedule. Returns the outputs of the micro-batches, on the last stage."""

    def forward_step(iterator, model):
        micro = next(iterator)

        def loss_fn(output):
            return loss(output, micro), torch.ones((), dtype=torch.int), output.detach()

        return forward(model, micro), loss_fn

    interleaved = len(chunks) > 1
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(batches) for _ in chunks] if interleaved else iter(batches),
        model=chunks if interleaved else chunks[0],
        num_microbatches=len(batches),
        seq_length=12,
        micro_batch_size=2,
        forward_only=forward_only,
    )


def with_gradient_buffers(chunks: list) -> list:
    config = DistributedDataParallelConfig(use_distributed_optimizer=False)
    wrapped = [DistributedDataParallel(c.config, config, c, disable_bucketing=i > 0) for i, c in enumerate(chunks)]
    for chunk in wrapped:
        chunk.zero_grad_buffer()
    return wrapped


def hub_gradients(chunks: list, hub_config) -> dict[str, torch.Tensor]:
    """Finished gradients by hub name: they are put in the parameters' place, and exported."""
    finalize_model_grads(chunks)
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.copy_(parameter.main_grad)
    return {name: tensor.clone() for name, tensor in export_hub_weights(chunks, hub_config)}


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def policy_forward(model, micro: Micro) -> torch.Tensor:
    return model(micro.tokens, None, None, labels=micro.labels, loss_mask=micro.mask)


def compare_policy(model: ModelConfig, folders: dict[str, Path]) -> dict[str, tuple[float, float]]:
    """By model: largest difference of log-probs and entropies, and of gradients relative to each tensor's largest."""
    place = groups.initialize(model, seed=1)
    differences = {}
    for name, folder in folders.items():
        hub_config = read_tiny_config(folder)
        with platform.megatron():
            chunks = build_policy(hub_config, model, "32", NUM_TOKEN_IDS)
            load_hub_weights(chunks, hub_config, folder)
            expected_weights = load_file(folder / "model.safetensors")
            exported = {key: value.clone() for key, value in export_hub_weights(chunks, hub_config)}
            assert exported.keys() == expected_weights.keys()
            assert all(exported[key].equal(expected_weights[key]) for key in exported)
            chunks = with_gradient_buffers(chunks)
            for chunk in chunks:
                unwrap(chunk).logprob_temperature = TEMPERATURE
            batches = micro_batches()
            outputs = run_schedule(chunks, batches, policy_forward, lambda output, micro: (output * micro.weights).sum())
            gradients = hub_gradients(chunks, hub_config)

        reference, value_difference = read_tiny_model(folder), 0.0
        for i, micro in enumerate(batches):
            logits = reference(micro.tokens).logits[..., :NUM_TOKEN_IDS]
            expected = reference_log_prob_and_entropy(logits, micro.labels, TEMPERATURE) * micro.mask
            (expected * micro.weights).sum().backward()
            if place.is_last_stage:
                assert outputs[i].dtype == torch.float32
                value_difference = max(value_difference, (outputs[i] - expected).abs().max().item())
        expected_gradients = {key: value.grad for key, value in reference.named_parameters()}
        assert gradients.keys() == expected_gradients.keys()
        differences[name] = (
            value_difference,
            max(relative_difference(gradients[key], expected_gradients[key]) for key in gradients),
        )
    return differences


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_and_gradients_are_those_of_transformers(layout, folders):
    num_ranks, model = LAYOUTS[layout]
    for differences in run_ranks(num_ranks, compare_policy, model, folders):
        for name, (values, gradients) in differences.items():
            assert values < 1e-5, (layout, name, values)
            assert gradients < 5e-5, (layout, name, gradients)


def compare_logits(model: ModelConfig, folder: Path, saved: Path) -> tuple[float, float]:
    """Difference of logits in one pass, and of logits decoded token by token through the cache; saves the model too."""
    groups.initialize(model, seed=1)
    hub_config, reference = read_tiny_config(folder), read_tiny_model(folder)
    tokens = micro_batches()[0].tokens
    with platform.megatron(), torch.no_grad():
        (policy,) = chunks = build_policy(hub_config, model, "32")
        load_hub_weights(chunks, hub_config, folder)
        policy.eval()
        expected = reference(tokens).logits
        logits = policy(tokens, None, None, runtime_gather_output=True)
        assert logits.shape == expected.shape, "columns that pad the vocabulary are cut off"
        context, decoded = StaticInferenceContext(2, 12), []
        for piece in tokens.split([5, *[1] * 7], dim=1):
            decoded.append(policy(piece, None, None, inference_context=context, runtime_gather_output=True)[:, -1])
            context.sequence_len_offset += piece.size(1)
            context.enable_decode_mode()
        save_hub_model(chunks, HubModel(hub_config, _Tokenizer(), folder, folder, ()), saved)
    return (logits - expected).abs().max().item(), (torch.stack(decoded, 1) - expected[:, 4:]).abs().max().item()


class _Tokenizer:
    """As much of a tokenizer as saving needs."""

    chat_template = None

    def save_pretrained(self, folder: Path) -> None:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (Path(folder) / file).write_text("{}")


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_logits_decoding_and_saving_agree_with_transformers(tensor_parallel, folders, tmp_path, monkeypatch):
    model = ModelConfig(tensor_model_parallel_size=tensor_parallel)
    tokens = micro_batches()[0].tokens
    for name in ("qwen3", "qwen2_tied"):
        saved = tmp_path / name
        for differences in run_ranks(tensor_parallel, compare_logits, model, folders[name], saved):
            assert max(differences) < 1e-5, (name, differences)
        assert (saved / "tokenizer.json").is_file()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(name)] == [name]
        reloaded = AutoModelForCausalLM.from_pretrained(saved)
        assert reloaded(tokens).logits.equal(read_tiny_model(folders[name])(tokens).logits)


def compare_bf16(folder: Path) -> float:
    groups.initialize(ModelConfig(), seed=1)
    hub_config, micro = read_tiny_config(folder), micro_batches()[0]
    with platform.megatron(), torch.no_grad():
        chunks = build_policy(hub_config, ModelConfig(), "bf16")
        load_hub_weights(chunks, hub_config, folder)
        output = policy_forward(chunks[0], micro)
    assert output.dtype == torch.float32
    assert {parameter.dtype for parameter in chunks[0].parameters()} == {torch.bfloat16}
    with torch.no_grad():
        logits = read_tiny_model(folder, torch.bfloat16)(micro.tokens).logits.float()
    return (output - reference_log_prob_and_entropy(logits, micro.labels, 1.0) * micro.mask)[0].abs().mean().item()


def test_bf16_is_as_near_as_bf16_can_be(folders):
    (difference,) = run_ranks(1, compare_bf16, folders["qwen3"])
    assert difference < 0.03


def compare_critic(model: ModelConfig, folder: Path, reward_model: Path) -> tuple[float, float, float]:
    """Differences of values, of the head's gradient and of the body's gradients from a head on transformers' hidden states.
    The critic is read from `reward_model`, whose body is that of `folder`."""
    place = groups.initialize(model, seed=1)
    hub_config = read_tiny_config(folder)
    head = torch.randn(1, hub_config.hidden_size, generator=torch.Generator().manual_seed(5))
    with platform.megatron():
        chunks = build_critic(hub_config, model, "32")
        load_hub_weights(chunks, hub_config, reward_model)
        for chunk in chunks:
            chunk.sharded_state_dict()
            if chunk.post_process:
                assert not chunk.output_layer.weight.any(), "values start at zero"
                assert param_is_not_tensor_parallel_duplicate(chunk.output_layer.weight) == (place.tensor_rank == 0)
                with torch.no_grad():
                    chunk.output_layer.weight.copy_(head)
        chunks = with_gradient_buffers(chunks)
        batches = micro_batches()
        outputs = run_schedule(
            chunks,
            batches,
            lambda model, micro: model(micro.tokens, None, None),
            lambda output, micro: (output * micro.weights[0]).sum(),
        )
        body = hub_gradients(chunks, hub_config)
    reference = read_tiny_model(folder).model
    head.requires_grad_()
    value_difference = 0.0
    for i, micro in enumerate(batches):
        expected = (reference(micro.tokens).last_hidden_state @ head.t()).squeeze(-1)
        (expected * micro.weights[0]).sum().backward()
        if place.is_last_stage:
            assert outputs[i].shape == expected.shape
            value_difference = max(value_difference, (outputs[i] - expected).abs().max().item())
    body_difference = max(relative_difference(body[f"model.{key}"], value.grad) for key, value in reference.named_parameters())
    if not place.is_last_stage:
        return 0.0, 0.0, body_difference
    return value_difference, relative_difference(unwrap(chunks[-1]).output_layer.weight, head.grad), body_difference


@pytest.mark.parametrize("layout", ["one_rank", "tp2", "tp2_sequence_parallel", "pp2", "tp2_pp2"])
def test_values_and_their_gradients_are_the_same_under_every_layout(layout, folders, tmp_path):
    num_ranks, model = LAYOUTS[layout]
    tensors = load_file(folders["qwen2_tied"] / "model.safetensors")
    body = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}  # as Qwen2Model names them
    save_file(body | {"score.weight": torch.ones(1, 64)}, tmp_path / "model.safetensors")
    for values, head, body in run_ranks(num_ranks, compare_critic, model, folders["qwen2_tied"], tmp_path):
        assert values < 2e-5
        assert head < 1e-5, "the value head's gradient, on every tensor-parallel rank"
        assert body < 5e-5


def refusals_of_broken_files(folder: Path) -> list[str]:
    """What loading says of a folder whose safetensors lack a tensor, have one more, or have one of another shape."""
    groups.initialize(ModelConfig(), seed=1)
    hub_config, messages = read_tiny_config(folder / "missing"), []
    with platform.megatron():
        chunks = build_policy(hub_config, ModelConfig(), "32")
        for case in ("missing", "unexpected", "shape"):
            with pytest.raises(UserError) as refusal:
                load_hub_weights(chunks, hub_config, folder / case)
            messages.append(str(refusal.value))
    return messages


def test_a_broken_weight_file_is_refused_by_tensor_and_file(folders, tmp_path):
    for case in ("missing", "unexpected", "shape"):
        tensors = load_file(folders["qwen2"] / "model.safetensors")
        if case == "missing":
            del tensors["model.norm.weight"]
        elif case == "unexpected":
            tensors["model.visual.weight"] = torch.zeros(1)
        else:
            tensors["model.norm.weight"] = torch.zeros(3)
        (tmp_path / case).mkdir()
        save_file(tensors, tmp_path / case / "model.safetensors")
        (tmp_path / case / "config.json").write_text((folders["qwen2"] / "config.json").read_text())
    (messages,) = run_ranks(1, refusals_of_broken_files, tmp_path)
    wanted = (("no tensor", "model.norm"), ("unexpected", "visual"), ("(3,)", "(64,)"))
    for message, words in zip(messages, wanted, strict=True):
        assert "model.safetensors" in message
        assert all(word in message for word in words)
        assert "\n" not in message
