"""The GPU computes what the CPU does: losses, mu, log-probs, greedy decoding, checkpoints, bf16.

Sums are taken in another order on a GPU, and some of its sums in no fixed order, so nothing is compared to the bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_amft.config.schema import ModelConfig, OptimConfig, RolloutConfig
from nemo_amft.data.batching import Batch
from nemo_amft.models.builder import build_policy
from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights
from nemo_amft.models.policy import Policy
from nemo_amft.parallel import groups, platform, random_state
from nemo_amft.parallel.groups import Place
from nemo_amft.types import Request, SamplingParams, TokenSequence
from tests.gpu.on_device import on
from tests.parallel import meta_steps
from tests.parallel.meta_steps import Case
from tests.parallel.tiny_models import tiny_configs, write_tiny_model

pytestmark = pytest.mark.timeout(300)

NEW_TOKENS = 12
PROMPTS = [(5, 6, 7), (50, 51, 52, 53, 54, 55, 56, 57, 58), (90,), (11, 12, 13, 14, 15)]


def largest_difference(found: list[dict], expected: list[dict]) -> float:
    """Over all metrics of all steps: relative, absolute below 0.01."""
    return max(abs(a[k] - b[k]) / max(abs(b[k]), 1e-2) for a, b in zip(found, expected, strict=True) for k in b)


@pytest.fixture(scope="module")
def cpu_steps(folders):
    """Three steps of Algorithm 2 in fp32 on the CPU."""
    return on("cpu", meta_steps.run, folders[False], Case())


def test_losses_mu_and_gradient_norms_are_those_of_the_cpu(device, folders, cpu_steps):
    found = on(device, meta_steps.run, folders[False], Case())
    off = largest_difference(found, cpu_steps)
    print(f"three AMFT steps in fp32: largest difference from the CPU {off:.1e}")
    assert off < 1e-3
    assert len({step["mu"] for step in found}) == 3


def test_a_step_without_the_distributed_optimizer_is_the_same(device, folders, cpu_steps):
    found = on(device, meta_steps.run, folders[False], Case(distributed_optimizer=False))
    assert largest_difference(found, cpu_steps) < 1e-3


def test_bf16_steps_stay_near_fp32(device, folders, cpu_steps):
    found = on(device, meta_steps.run, folders[False], Case(precision="bf16"))
    for name in ("loss/sft", "entropy/sft", "loss/value"):
        off = max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(found, cpu_steps, strict=True))
        print(f"three AMFT steps in bf16: {name} differs from fp32 on the CPU by {off:.2%} at most")
        assert off < 0.05, name


@pytest.mark.parametrize("case", [Case(), Case(offload=True), Case(offload=True, precision="bf16")], ids=repr)
def test_a_checkpoint_restores_the_run(device, folders, tmp_path, case):
    if case.offload and device == "cpu":
        pytest.skip("Megatron offloads from a GPU only")
    uninterrupted = on(device, meta_steps.save_after_two, folders[False], case, str(tmp_path))
    resumed = on(device, meta_steps.resume_after_two, folders[False], case, str(tmp_path))
    assert largest_difference(resumed, uninterrupted) < 1e-4


def test_the_cpu_reads_the_gpus_checkpoint(device, folders, tmp_path):
    uninterrupted = on(device, meta_steps.save_after_two, folders[False], Case(), str(tmp_path))
    resumed = on("cpu", meta_steps.resume_after_two, folders[False], Case(), str(tmp_path))
    assert largest_difference(resumed, uninterrupted) < 1e-3


def measured(made: dict[str, Path]) -> dict[str, dict[str, object]]:
    """What `measured_of` finds, by model: in one process, since a process's start takes most of the time."""
    model = ModelConfig(micro_batch_size=2)
    place = groups.initialize(model, seed=1)
    return {name: measured_of(folder, model, place) for name, folder in made.items()}


def measured_of(folder: Path, model: ModelConfig, place: Place) -> dict[str, object]:
    """Log-probs, greedy tokens by both engines, exported weights and where things are, of one model in fp32."""
    from nemo_amft.rollout.megatron import MegatronEngine

    config = AutoConfig.from_pretrained(folder)
    with platform.megatron():
        chunks = build_policy(config, model, "32")
        load_hub_weights(chunks, config, folder)
        policy = Policy(chunks, model, OptimConfig(), "32", place)
    g = torch.Generator().manual_seed(2)
    sequences = [
        TokenSequence(tuple(torch.randint(0, config.vocab_size, (n,), generator=g).tolist()), (False, *[True] * (n - 1)))
        for n in (9, 14, 20)
    ]
    reference = AutoModelForCausalLM.from_pretrained(folder).to(platform.device())
    with torch.no_grad():
        theirs = []
        for sequence in sequences:
            tokens = torch.tensor([sequence.tokens], device=platform.device())
            log_p = reference(tokens).logits.log_softmax(-1)[0, :-1]
            theirs.append([0.0, *log_p.gather(-1, tokens[0, 1:, None])[:, 0].tolist()])
    ours = [values.tolist() for values in policy.log_probs(Batch.whole(sequences))]
    engine = MegatronEngine(policy.chunks, RolloutConfig(max_num_seqs=2, max_new_tokens=NEW_TOKENS), config.vocab_size, 40)
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    greedy = [c.token_ids for c in engine.generate(requests, SamplingParams(NEW_TOKENS, temperature=0.0))]
    lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    generated = [
        tuple(reference.generate(torch.tensor([p], device=platform.device()), **lengths)[0, len(p) :].tolist()) for p in PROMPTS
    ]
    state = random_state.get_state()
    drawn = [torch.rand(3, device=platform.device()).tolist() for _ in range(2)]
    random_state.set_state(state)
    again = [torch.rand(3, device=platform.device()).tolist() for _ in range(2)]
    return {
        "ours": ours,
        "theirs": theirs,
        "greedy": greedy,
        "generated": generated,
        "sampled": [c.token_ids for c in engine.generate(requests, SamplingParams(NEW_TOKENS))],
        "devices": {p.device.type for p in policy.chunks[0].parameters()} | {g.device.type for g in _buffers(policy)},
        "exported": {name: float(tensor.double().sum()) for name, tensor in export_hub_weights(policy.chunks, config)},
        "random state kept": drawn == again,
        "peak": platform.peak_memory_bytes(),
    }


def _buffers(policy: Policy) -> list[torch.Tensor]:
    states = [s for member in policy._optimizers() for s in member.optimizer.state.values()]
    return [*policy.main_parameters(), *(s["exp_avg"] for s in states), *(p.main_grad for p in policy.chunks[0].parameters())]


@pytest.fixture(scope="module")
def everything(device, tmp_path_factory) -> tuple[dict, dict]:
    """What the device and the CPU measured, by tiny model."""
    made = {name: write_tiny_model(name, tmp_path_factory.mktemp(name)) for name in tiny_configs()}
    return on(device, measured, made), on("cpu", measured, made)


@pytest.fixture(params=list(tiny_configs()))
def both(request, everything) -> tuple[dict, dict]:
    """Of one tiny model."""
    return everything[0][request.param], everything[1][request.param]


def test_log_probs_are_those_of_transformers_and_of_the_cpu(both):
    found, cpu = both
    for ours, theirs, elsewhere in zip(found["ours"], found["theirs"], cpu["ours"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert ours == pytest.approx(elsewhere, abs=1e-4)


def test_greedy_tokens_are_those_of_transformers_and_of_the_cpu(both):
    found, cpu = both
    assert found["greedy"] == found["generated"]
    assert found["greedy"] == cpu["greedy"]


def test_seeds_draw_the_cpus_tokens(both):
    found, cpu = both
    assert found["sampled"] == cpu["sampled"]


def test_weights_and_optimiser_are_on_the_device_and_export_unchanged(both, device):
    found, cpu = both
    assert found["devices"] == {device}
    assert found["exported"] == pytest.approx(cpu["exported"], rel=1e-12)
    assert found["random state kept"]
    assert found["peak"] > 0
