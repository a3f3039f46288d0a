"""Three steps of AMFT's controller and policy update on fixed data, for any layout: what the tests of layouts compare."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from transformers import AutoConfig

from nemo_amft.algorithms.controllers.amft import AMFTController, AMFTControllerConfig, MetaGradientConfig
from nemo_amft.algorithms.controllers.base import Observation
from nemo_amft.algorithms.critic_step import add_gae, update_critic
from nemo_amft.algorithms.losses import ValueLoss
from nemo_amft.algorithms.meta_gradient import KeptDifference
from nemo_amft.algorithms.meta_update import MetaUpdate
from nemo_amft.algorithms.methods.base import Demonstration, Group, RLConfig, Sample, Term, rl_term, sft_term
from nemo_amft.algorithms.update import update_policy
from nemo_amft.config.schema import ModelConfig, OptimConfig
from nemo_amft.models import trainable
from nemo_amft.models.builder import build_critic, build_policy
from nemo_amft.models.checkpoints import Checkpoints, layout
from nemo_amft.models.critic import Critic
from nemo_amft.models.hub_weights import load_hub_weights
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import TrainableModel, set_schedule
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import groups, platform
from nemo_amft.types import Example, TokenSequence, Verdict

VOCAB = 64


@dataclass(frozen=True)
class Case:
    """One layout and its options."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    virtual: int | None = None
    sequence_parallel: bool = False
    distributed_optimizer: bool = True
    overlap: bool = False
    bucket_size: int | None = None
    """Elements after which a gradient buffer starts a new bucket; None: Megatron's 40 million. Needs `overlap`."""
    offload: bool = False
    micro_batch_size: int = 3
    micro_batch_tokens: int | None = None
    packing: bool = True
    precision: str = "32"
    advantage: str = "gae"
    meta: MetaGradientConfig = field(default_factory=lambda: MetaGradientConfig(scale="cosine", val_samples=2))
    steps: int = 3
    count_duplicates: bool = False
    """The deliberate mistake: parameters that several ranks hold alike count once a rank."""

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            tensor_model_parallel_size=self.tensor,
            pipeline_model_parallel_size=self.pipeline,
            virtual_pipeline_model_parallel_size=self.virtual,
            sequence_parallel=self.sequence_parallel,
            context_parallel_size=self.context,
            micro_batch_size=self.micro_batch_size,
            micro_batch_tokens=self.micro_batch_tokens,
            sequence_packing=self.packing,
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
            optimizer_cpu_offload=self.offload,
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
                tuple(
                    Sample(q, "", Verdict(float(r), bool(r)), True, q.num_trained) for q, r in zip(drawn, rewards, strict=True)
                ),
            )
        )
    return result


def demonstrations(groups_: list[Group]) -> list[Demonstration]:
    """The rewarded responses among `groups_`, and one more: gradients that are far from orthogonal, so that their inner
    products can be compared to many digits."""
    g = torch.Generator().manual_seed(3)
    example = Example("d", (), "")
    good = [s.sequence for group in groups_ for s in group.samples if s.verdict.correct]
    return [Demonstration(example, q) for q in [*good, _sequence(g, 5, 9)]]


class Session:
    """Policy, critic and controller on one layout."""

    def __init__(self, folder: str, case: Case):
        self.case, self.place = case, groups.initialize(case.model, seed=1)
        config = AutoConfig.from_pretrained(folder)
        buckets = functools.partial(DistributedDataParallelConfig, bucket_size=case.bucket_size)
        with platform.megatron(), patch.object(trainable, "DistributedDataParallelConfig", buckets):
            chunks = build_policy(config, case.model, case.precision)
            load_hub_weights(chunks, config, Path(folder))
            self.policy = Policy(chunks, case.model, case.optim, case.precision, self.place)
            chunks = build_critic(config, case.model, case.precision)
            load_hub_weights(chunks, config, Path(folder))
            self.critic = Critic(chunks, case.model, case.optim, case.precision, self.place)
        settings = AMFTControllerConfig(eta_mu=0.1, eta_h=0.05, meta_every=1, meta_gradient=case.meta)
        self.controller, self.meta = AMFTController(settings), MetaUpdate(self.policy, case.meta)
        if case.count_duplicates:
            self.meta.product = replace(self.meta.product, owned=[True] * len(self.meta.product.owned))
        self.schedule = self.policy.scheduler(1e-3, 0.0, 10, 0.0, "constant")
        self.timers = PhaseTimers()

    def share(self, term: Term) -> Term:
        return replace(term, batch=term.batch.share(self.place))

    def step(self, t: int, keep: bool = True) -> dict[str, float]:
        """One step of Algorithm 2 on the data of step t; returns its metrics."""
        gae = self.case.advantage == "gae"
        rl = RLConfig(advantage=self.case.advantage)
        terms = [self.share(sft_term(demonstrations(rollouts(20 + t)))), self.share(rl_term(rollouts(20 + t), rl, 16))]
        due = self.controller.wants_meta_gradient(t) and self.meta.kept is not None
        estimate = self.meta.estimate(rollouts(19 + t), 1.0) if due else None
        if gae:
            add_gae(terms[1].batch, self.critic, terms[1])
        learning_rate = set_schedule(self.schedule, t)

        def weigh(first: dict) -> dict:
            return self.controller.update(Observation(t, first, 3.5, estimate))

        apart = self.meta.product if keep and self.controller.wants_difference(t) else None
        result = update_policy(self.policy, terms, weigh, self.timers, temperature=1.0, apart=apart)
        metrics = result.metrics | self.controller.metrics() | {"grad_norm/total": result.grad_norm}
        if apart is not None:
            self.kept_metrics = self.meta.keep(t, learning_rate, result)
        if estimate is not None:
            metrics |= {"meta/g_mu": estimate.value, "meta/dot": estimate.dot, "meta/grad_u_norm": estimate.grad_u_norm}
            metrics |= {"meta/direction_norm": estimate.direction_norm}
        if gae:
            metrics |= update_critic(terms[1].batch, self.critic, ValueLoss(0.2))
        return metrics


def run(folder: str, case: Case) -> list[dict[str, float]]:
    """Metrics of each step, on every rank."""
    session = Session(folder, case)
    return [session.step(t, keep=t + 1 < case.steps) for t in range(case.steps)]


def save_after_two(folder: str, case: Case, checkpoints: str) -> list[dict[str, float]]:
    """Two steps, a checkpoint, and two more steps, whose metrics are returned."""
    session = Session(folder, case)
    for t in range(2):
        session.step(t)
    kept = session.meta.kept
    store = Checkpoints(Path(checkpoints), 2, session.place)
    trainer = {"layout": layout(session.place, session.policy), "controller": session.controller.state_dict()}
    store.save(2, {"policy": session.policy, "critic": session.critic}, trainer, {"kept": vars(kept)})
    return [session.step(t) for t in (2, 3)]


def save_after_two_misplaced(folder: str, case: Case, checkpoints: str) -> list[dict[str, float]]:
    """As `save_after_two`, by Megatron as it is."""
    mended = DistributedOptimizer.sharded_param_state_fully_reshardable
    DistributedOptimizer.sharded_param_state_fully_reshardable = mended.__wrapped__
    return save_after_two(folder, case, checkpoints)


def resume_after_two(folder: str, case: Case, checkpoints: str) -> list[dict[str, float]]:
    """The two steps after the checkpoint, in processes that have made none."""
    session = Session(folder, case)
    store = Checkpoints(Path(checkpoints), 2, session.place)
    path = store.newest_intact()
    assert path is not None
    trainer, rank_state = store.load(path, {"policy": session.policy, "critic": session.critic})
    session.controller.load_state_dict(trainer["controller"])
    if rank_state is not None:
        session.meta.kept = KeptDifference(**rank_state["kept"])
    return [session.step(t) for t in (2, 3)]


def save_at_once(folder: str, case: Case, checkpoints: str) -> tuple[float, float]:
    """A checkpoint of models that have made no step, then two steps; returns their gradient norms."""
    session = Session(folder, case)
    store = Checkpoints(Path(checkpoints), 2, session.place)
    store.save(0, {"policy": session.policy, "critic": session.critic}, {"layout": layout(session.place, session.policy)}, {})
    return session.step(0)["grad_norm/total"], session.step(1)["grad_norm/total"]


def resume_at_once(folder: str, case: Case, checkpoints: str) -> tuple[float, float]:
    """The same steps after loading that checkpoint."""
    session = Session(folder, case)
    store = Checkpoints(Path(checkpoints), 2, session.place)
    store.load(store.newest_intact(), {"policy": session.policy, "critic": session.critic})
    return session.step(0)["grad_norm/total"], session.step(1)["grad_norm/total"]


def save_offloaded(folder: str, case: Case, checkpoints: str) -> None:
    """A checkpoint with moments that no optimiser starts with."""
    session = Session(folder, case)
    for member in session.policy._optimizers():
        for state in member.optimizer.state.values():
            state["exp_avg"].fill_(0.25)
    models = {"policy": session.policy, "critic": session.critic}
    Checkpoints(Path(checkpoints), 2, session.place).save(0, models, {"layout": layout(session.place, session.policy)}, {})


def load_offloaded(folder: str, case: Case, checkpoints: str) -> tuple[set[float], dict[str, float]]:
    """The policy's moments after loading; how far the optimiser's parameters are from the models', after that and after the
    critic has taken over weights that were changed meanwhile."""
    session = Session(folder, case)
    store = Checkpoints(Path(checkpoints), 2, session.place)
    store.load(store.newest_intact(), {"policy": session.policy, "critic": session.critic})
    states = [state for member in session.policy._optimizers() for state in member.optimizer.state.values()]
    moments = {value for state in states for value in state["exp_avg"].unique().tolist()}
    differences = {"as loaded": _apart(session.policy)}
    with torch.no_grad():
        for parameter in session.policy.chunks[0].parameters():
            parameter.add_(0.5)
    session.critic.copy_body_from(session.policy)
    return moments, differences | {"critic, from the policy": _apart(session.critic)}


def _apart(model: TrainableModel) -> float:
    """Largest difference between this rank's main shards and the model's parameters that they belong to."""
    (member,) = model._optimizers()
    shards = zip(member.model_float16_groups, member.shard_fp32_from_float16_groups, strict=True)
    pairs = [pair for parameters, mains in shards for pair in zip(parameters, mains, strict=True)]
    ranges = [member._get_model_param_range_map(parameter)["param"] for parameter, _ in pairs]
    return max(
        float((parameter.view(-1)[at.start : at.end].float() - main).abs().max())
        for (parameter, main), at in zip(pairs, ranges, strict=True)
    )


def kept_bytes(folder: str, case: Case) -> dict[str, float]:
    """What is kept between two steps, and what is left of it after the meta-update."""
    session = Session(folder, case)
    session.step(0)
    logged = session.kept_metrics["memory/kept_difference"]
    kept = session.meta.kept
    shard = sum(p.numel() for p in session.policy.main_parameters())
    dtypes = {str(d.dtype) for d in kept.direction}
    session.step(1, keep=False)
    whole = sum(p.numel() for chunk in session.policy.chunks for p in chunk.parameters())
    return {"bytes": logged, "shard": shard, "model": whole, "dtypes": sorted(dtypes), "left": session.meta.kept is not None}


def meta_gradient_of_equal_rewards(folder: str, case: Case, reward: float) -> tuple[float, float]:
    """g_mu and |grad U| where every validation response earned the same."""
    session = Session(folder, case)
    session.step(0)
    alike = [
        replace(g, samples=tuple(replace(s, verdict=Verdict(reward, reward > 0)) for s in g.samples)) for g in rollouts(19)
    ]
    estimate = session.meta.estimate(alike, 1.0)
    return estimate.value, estimate.grad_u_norm


def without_demonstrations(folder: str, case: Case) -> dict[str, float]:
    """A step whose batch has no demonstration."""
    session = Session(folder, case)
    terms = [session.share(sft_term([])), session.share(rl_term(rollouts(20), RLConfig(advantage="grpo"), 16))]

    def weigh(first: dict) -> dict:
        return session.controller.update(Observation(0, first, 3.5, None))

    result = update_policy(session.policy, terms, weigh, session.timers, temperature=1.0, apart=session.meta.product)
    return (
        result.metrics
        | session.controller.metrics()
        | {"grad_norm/total": result.grad_norm, "kept": result.difference is not None}
    )


def rl_gradient_norm(folder: str, case: Case, entropy_coef: float) -> float:
    """Norm of the RL term's gradient."""
    session = Session(folder, case)
    term = session.share(rl_term(rollouts(20), RLConfig(advantage="dr_grpo", entropy_coef=entropy_coef), 16))
    return update_policy(session.policy, [term], lambda _: {}, session.timers, temperature=1.0).grad_norm
