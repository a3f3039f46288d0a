"""Three steps of AMFT's controller and policy update on fixed data, for any layout: what the tests of layouts compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from nemo_amft.algorithms.controllers.amft import AMFTController, AMFTControllerConfig, MetaGradientConfig
from nemo_amft.algorithms.controllers.base import Observation
from nemo_amft.algorithms.critic_step import add_gae, update_critic
from nemo_amft.algorithms.losses import ValueLoss
from nemo_amft.algorithms.meta_update import MetaUpdate
from nemo_amft.algorithms.methods.base import Demonstration, Group, RLConfig, Sample, Term, rl_term, sft_term
from nemo_amft.algorithms.update import share_of, update_policy
from nemo_amft.config.schema import ModelConfig, OptimConfig
from nemo_amft.models.builder import build_critic, build_policy
from nemo_amft.models.critic import Critic
from nemo_amft.models.hub_weights import load_hub_weights
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import set_schedule
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import groups, platform
from nemo_amft.types import Example, TokenSequence, Verdict

VOCAB = 64


@dataclass(frozen=True)
class Case:
    """One layout and its options."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int | None = None
    sequence_parallel: bool = False
    distributed_optimizer: bool = True
    overlap: bool = False
    micro_batch_size: int = 3
    precision: str = "32"
    advantage: str = "gae"
    meta: MetaGradientConfig = MetaGradientConfig(scale="cosine", val_samples=2)
    steps: int = 3

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            tensor_model_parallel_size=self.tensor,
            pipeline_model_parallel_size=self.pipeline,
            virtual_pipeline_model_parallel_size=self.virtual,
            sequence_parallel=self.sequence_parallel,
            micro_batch_size=self.micro_batch_size,
            logprob_chunk_tokens=16,
        )

    @property
    def optim(self) -> OptimConfig:
        # A large epsilon: with the usual one Adam turns rounding of tiny gradients into steps of full size.
        return OptimConfig(
            lr=1e-3,
            eps=1e-3,
            lr_decay_style="constant",
            lr_warmup_ratio=0.0,
            use_distributed_optimizer=self.distributed_optimizer,
            overlap_grad_reduce=self.overlap,
        )


def _sequence(g: torch.Generator, prompt: int, response: int) -> TokenSequence:
    tokens = tuple(torch.randint(3, VOCAB, (prompt + response,), generator=g).tolist())
    behavior = [0.0] * prompt + (-4 * torch.rand(response, generator=g)).tolist()
    return TokenSequence(tokens, (*[False] * prompt, *[True] * response), tuple(behavior))


def rollouts(seed: int, n: int = 4, samples: int = 2) -> list[Group]:
    """Graded groups of different lengths; rewards 0 and 1."""
    g = torch.Generator().manual_seed(seed)
    result = []
    for i in range(n):
        drawn = [_sequence(g, 4, 3 + (i + s) % 5) for s in range(samples)]
        rewards = torch.randint(0, 2, (samples,), generator=g).tolist()
        result.append(
            Group(
                Example(str(i), (), ""),
                tuple(Sample(q, "", Verdict(float(r), bool(r)), True, q.num_trained) for q, r in zip(drawn, rewards, strict=True)),
            )
        )
    return result


def demonstrations(groups_: list[Group]) -> list[Demonstration]:
    """The rewarded responses among `groups_`, and one more: gradients that are far from orthogonal, so that their inner products
    can be compared to many digits."""
    g = torch.Generator().manual_seed(3)
    example = Example("d", (), "")
    good = [s.sequence for group in groups_ for s in group.samples if s.verdict.correct]
    return [Demonstration(example, q) for q in [*good, _sequence(g, 5, 9)]]


def run(folder: str, case: Case) -> list[dict[str, float]]:
    """Metrics of each step, on every rank."""
    place = groups.initialize(case.model, seed=1)
    config = AutoConfig.from_pretrained(folder)
    with platform.megatron():
        chunks = build_policy(config, case.model, case.precision)
        load_hub_weights(chunks, config, Path(folder))
        policy = Policy(chunks, case.model, case.optim, case.precision, place)
        chunks = build_critic(config, case.model, case.precision)
        load_hub_weights(chunks, config, Path(folder))
        critic = Critic(chunks, case.model, case.optim, case.precision, place)
    settings = AMFTControllerConfig(eta_mu=0.1, eta_h=0.05, meta_every=1, meta_gradient=case.meta)
    controller, meta = AMFTController(settings), MetaUpdate(policy, case.meta)
    schedule = policy.scheduler(1e-3, 0.0, 10, 0.0, "constant")
    rl, timers, log = RLConfig(advantage=case.advantage), PhaseTimers(), []

    def share(term: Term) -> Term:
        return replace(term, batch=term.batch.select(share_of(term.batch, place.data_rank, place.data_size)))

    for t in range(case.steps):
        terms = [share(sft_term(demonstrations(rollouts(20 + t)))), share(rl_term(rollouts(20 + t), rl, 16))]
        estimate = meta.estimate(rollouts(19 + t), 1.0) if controller.wants_meta_gradient(t) else None
        if case.advantage == "gae":
            add_gae(terms[1].batch, critic, terms[1])
        learning_rate = set_schedule(schedule, t)

        def weigh(first: dict, t: int = t, estimate=estimate) -> dict:
            return controller.update(Observation(t, first, 3.5, estimate))

        keep = controller.wants_difference(t) and t + 1 < case.steps
        result = update_policy(policy, terms, weigh, timers, temperature=1.0, apart=meta.product if keep else None)
        metrics = result.metrics | controller.metrics() | {"grad_norm/total": result.grad_norm}
        if keep:
            meta.keep(t, learning_rate, result)
        if estimate is not None:
            metrics |= {"meta/g_mu": estimate.value, "meta/dot": estimate.dot, "meta/grad_u_norm": estimate.grad_u_norm}
            metrics |= {"meta/direction_norm": estimate.direction_norm}
        if case.advantage == "gae":
            metrics |= update_critic(terms[1].batch, critic, ValueLoss(0.2))
        log.append(metrics)
    return log
