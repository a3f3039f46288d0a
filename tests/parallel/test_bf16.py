"""bf16 training keeps up with fp32: fp32 main weights, fp32 gradients and their reduction, and a band around the losses.

docs/precision.md holds the table that `pytest -s` prints here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM

from nemo_amft.algorithms.losses import SFTLoss
from nemo_amft.algorithms.methods.base import sft_term
from nemo_amft.algorithms.update import update_policy
from nemo_amft.config.schema import OptimConfig
from nemo_amft.observe.metrics import read_metrics
from tests.end_to_end import launch
from tests.parallel import meta_steps
from tests.parallel.meta_steps import Case, Session, demonstrations, rollouts
from tests.parallel.ranks import run_ranks

STEPS = 20
BAND = 0.02
"""Largest relative difference of a step's loss from fp32's."""


@dataclass(frozen=True)
class Precise(Case):
    """A case with a learning rate of its own, and the usual epsilon: Adam's updates are then about `lr` in size."""

    lr: float = 3e-5
    round_main_weights: bool = False
    """The deliberate mistake: main weights in bf16, as an optimiser that steps on bf16 parameters has them."""

    @property
    def optim(self) -> OptimConfig:
        return replace(super().optim, lr=self.lr, eps=1e-8, weight_decay=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A model with weights as small, and a width as near to a real one's, as a test can afford: N(0, 0.02), 128 wide."""
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=meta_steps.VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.02,
    )  # fmt: skip
    made = tmp_path_factory.mktemp("small_weights")
    Qwen2ForCausalLM(config).save_pretrained(made)
    return str(made)


class Training(Session):
    """A session at the case's own learning rate."""

    def __init__(self, folder: str, case: Precise):
        super().__init__(folder, case)
        self.schedule = self.policy.scheduler(case.lr, 0.0, STEPS, 0.0, "constant")

    def round_main_weights(self) -> None:
        for parameter in self.policy.main_parameters():
            parameter.data.copy_(parameter.data.bfloat16())


def sft_losses(folder: str, case: Precise) -> list[float]:
    """Loss of each of 20 SFT steps on the same demonstrations."""
    session = Training(folder, case)
    term = session.share(sft_term(demonstrations(rollouts(20))))
    found = []
    for _ in range(STEPS):
        meta_steps.set_schedule(session.schedule, 0)
        result = update_policy(session.policy, [term], lambda _: {}, session.timers, temperature=1.0)
        found.append(result.metrics["loss/sft"])
        if case.round_main_weights:
            session.round_main_weights()
    return found


def amft_steps(folder: str, case: Precise) -> list[dict[str, float]]:
    """Metrics of 20 steps of Algorithm 2, meta-update and critic included, on fixed rollouts."""
    session = Training(folder, case)
    return [session.step(t, keep=t + 1 < STEPS) for t in range(STEPS)]


def relative(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def test_twenty_sft_steps_in_bf16_track_those_in_fp32(folder):
    full, half = (run_ranks(1, sft_losses, folder, Precise(precision=p))[0] for p in ("32", "bf16"))
    off, learned = relative(half, full), 1 - full[-1] / full[0]
    print(f"SFT: fp32 {full[0]:.4f} -> {full[-1]:.4f}, bf16 {half[0]:.4f} -> {half[-1]:.4f}, differ by {off:.2%} at most")
    assert off < BAND
    assert learned > 4 * BAND, "the loss moved far more than the band is wide, so standing still would leave it"


def test_bf16_main_weights_would_be_noticed(folder):
    """At this learning rate most updates are below half of bf16's spacing: added to bf16 weights they are rounded away."""
    full = run_ranks(1, sft_losses, folder, Precise())[0]
    stuck = run_ranks(1, sft_losses, folder, Precise(precision="bf16", round_main_weights=True))[0]
    print(f"SFT with bf16 main weights: {stuck[0]:.4f} -> {stuck[-1]:.4f}, differs by {relative(stuck, full):.2%}")
    assert relative(stuck, full) > 2 * BAND


def changed_by_one_step(folder: str, case: Precise) -> float:
    """Share of the main weights that the first step changes."""
    session = Training(folder, case)
    session.round_main_weights()  # so that a later rounding alone changes nothing
    before = [parameter.detach().clone() for parameter in session.policy.main_parameters()]
    meta_steps.set_schedule(session.schedule, 0)
    term = session.share(sft_term(demonstrations(rollouts(20))))
    update_policy(session.policy, [term], lambda _: {}, session.timers, temperature=1.0)
    if case.round_main_weights:
        session.round_main_weights()
    after = session.policy.main_parameters()
    return sum(int((a != b).sum()) for a, b in zip(after, before, strict=True)) / sum(b.numel() for b in before)


def test_at_the_papers_learning_rate_bf16_main_weights_would_stand_still(folder):
    """1e-6 (Table 6) against weights of 0.02, between which bf16 steps by 1.2e-4."""
    kept, rounded = (
        run_ranks(1, changed_by_one_step, folder, Precise(precision="bf16", lr=1e-6, round_main_weights=r))[0]
        for r in (False, True)
    )
    print(f"weights that one step at 1e-6 changes: {kept:.1%} in fp32, {rounded:.1%} in bf16")
    assert kept > 0.6  # the embedding rows of tokens that do not occur have no gradient
    assert rounded < 0.05


@pytest.mark.parametrize(("ranks", "tensor"), [(1, 1), (2, 1), (2, 2)], ids=["one_rank", "dp2", "tp2"])
def test_twenty_amft_steps_in_bf16_track_those_in_fp32(folder, ranks, tensor):
    full = run_ranks(1, amft_steps, folder, Precise())[0]
    half = run_ranks(ranks, amft_steps, folder, Precise(precision="bf16", tensor=tensor))[0]
    for name in ("loss/sft", "loss/value", "entropy/sft", "entropy/rl", "grad_norm/total"):
        off = relative([step[name] for step in half], [step[name] for step in full])
        print(f"AMFT, {ranks} ranks, TP{tensor}: {name} differs by {off:.2%} at most")
        assert off < BAND, name
    # mu and the cosine that moves it lie between -1 and 1 and may be 0: an absolute band.
    for name in ("mu", "meta/g_mu"):
        off = max(abs(a[name] - b[name]) for a, b in zip(half, full, strict=True) if name in b)
        print(f"AMFT, {ranks} ranks, TP{tensor}: {name} differs by {off:.4f} at most")
        assert off < BAND, name


def dtypes_and_reduction(folder: str, case: Precise) -> dict[str, object]:
    """What is kept in which dtype after a step, and this step's reduced gradient against the ranks' own, summed here."""
    session = Training(folder, case)
    policy, term = session.policy, session.share(sft_term(demonstrations(rollouts(20))))
    before = [parameter.detach().clone() for parameter in policy.main_parameters()]
    policy.zero_gradients()
    policy.accumulate_term(term.batch, SFTLoss(), 1.0, last=True)
    own = [parameter.main_grad.detach().clone() for parameter in policy.chunks[0].parameters()]
    handed: set[torch.dtype] = set()
    for name in ("all_reduce", "reduce_scatter_tensor"):
        _watch(name, handed)
    policy.finish_gradients()
    summed = []
    for gradient in own:
        dist.all_reduce(gradient)
        summed.append(gradient.flatten())
    reduced = torch.cat([p.main_grad.detach().flatten() for p in policy.chunks[0].parameters()])
    meta_steps.set_schedule(session.schedule, 0)
    policy.step()
    parameters = list(policy.chunks[0].parameters())
    states = [s for m in policy._optimizers() for s in m.optimizer.state.values()]
    return {
        "parameters": {p.dtype for p in parameters},
        "gradients": {p.main_grad.dtype for p in parameters},
        "main weights": {p.dtype for p in policy.main_parameters()},
        "moments": {s[name].dtype for s in states for name in ("exp_avg", "exp_avg_sq")},
        "handed to collectives": handed,
        "reduction error": ((reduced - torch.cat(summed)).abs().max() / torch.cat(summed).abs().max()).item(),
        "lost by rounding the sum": (reduced - reduced.bfloat16()).abs().max().item() / reduced.abs().max().item(),
        "moved": sum(int((a != b).sum()) for a, b in zip(policy.main_parameters(), before, strict=True)),
        "rounds to main": all(
            torch.equal(p.detach().float(), p.main_param.detach().bfloat16().float().view_as(p))
            for p in parameters
            if getattr(p, "main_param", None) is not None and p.main_param.numel() == p.numel()
        ),
    }


def _watch(name: str, handed: set[torch.dtype]) -> None:
    """Note the dtype of what is given to a collective of torch.distributed."""
    original = getattr(dist, name)

    def noted(tensor, *args, **kwargs):
        handed.update(x.dtype for x in (tensor, *args) if isinstance(x, torch.Tensor) and x.dim() > 0)
        return original(tensor, *args, **kwargs)

    setattr(dist, name, noted)


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed_optimizer", "plain_optimizer"])
def test_main_weights_gradients_moments_and_reduction_are_fp32(folder, distributed):
    case = Precise(precision="bf16", distributed_optimizer=distributed)
    for found in run_ranks(2, dtypes_and_reduction, folder, case):
        assert found["parameters"] == {torch.bfloat16}
        for what in ("gradients", "main weights", "moments"):
            assert found[what] == {torch.float32}, what
        assert torch.bfloat16 not in found["handed to collectives"]
        assert found["rounds to main"]
        assert found["moved"] > 0
        if not distributed:  # with it, each rank holds the sum of its own part only
            assert found["reduction error"] < 1e-6
            assert found["lost by rounding the sum"] > 1e-4, "a reduction in bf16 would show"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["megatron", "vllm"])
def test_a_run_in_bf16_with_either_engine(tmp_path, engine):
    """The program itself: its engine and its policy are the same model, as far as bf16 can tell."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    arguments = launch.command(run_dir, "trainer.precision=bf16", f"rollout={engine}", "trainer.max_steps=3")
    assert launch.finish(arguments, log, timeout=500) == 0, log.read_text()
    train = [r for r in read_metrics(run_dir) if r["phase"] == "train"]
    assert len(train) == 3
    assert all(0 <= r["kl/rollout_vs_policy"] < 1e-2 for r in train)
    assert any("meta/g_mu" in r for r in train)
