"""From a validated config to the parts of a run. What a user can get wrong is found here before any model is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor

from nemo_amft.algorithms.parts import Parts
from nemo_amft.algorithms.run_data import RunData
from nemo_amft.algorithms.sampling import Sampler
from nemo_amft.algorithms.throughput import Throughput
from nemo_amft.config.architecture import from_hub
from nemo_amft.config.plugins import load_function
from nemo_amft.config.schema import Config, RolloutConfig
from nemo_amft.config.validate import validate
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.template import TIME_FILE, pinned_time
from nemo_amft.evaluation.problems import wanted
from nemo_amft.evaluation.run import BenchmarkTask, mathematics
from nemo_amft.models import checkpoints
from nemo_amft.models.builder import build_critic, build_policy
from nemo_amft.models.checkpoints import Checkpoints
from nemo_amft.models.critic import Critic
from nemo_amft.models.hub_model import HubModel, prepare_critic, prepare_hub_model
from nemo_amft.models.hub_tokenizer import backend
from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import ForwardModel
from nemo_amft.observe import start_up
from nemo_amft.observe.metrics import MetricsWriter, NullMetricsWriter
from nemo_amft.observe.progress import Progress
from nemo_amft.observe.rollouts import RolloutWriter
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import groups, platform
from nemo_amft.parallel.groups import Place
from nemo_amft.parallel.peak import device_peak
from nemo_amft.tasks.base import Images, Task, judge_of
from nemo_amft.tasks.math.graders import BenchmarkVerifier, TaskOrBenchmark
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import RolloutEngine, UserError


def on_main_first(place: Place, work: Callable[[], object]):
    """Run `work` on rank 0, then on the others: for what writes files that the others read. An error of rank 0 ends all."""
    result = work() if place.is_main else None
    dist.barrier()
    return result if place.is_main else work()


def load_model(config: Config, run_dir: Path, place: Place, trained: bool = True) -> HubModel:
    """The hub model the policy starts from (a scratch one is made in the run directory, by rank 0)."""
    folder = run_dir / "base_model"
    return on_main_first(place, lambda: prepare_hub_model(config.model, folder, trained))


def load_chat(config: Config, run_dir: Path, place: Place, hub: HubModel, max_demonstration_tokens: int | None) -> ChatTemplate:
    """The model's chat template, with the run's time for one that reads the clock, which is shown. Raises UserError for what
    rollout.stop or rollout.stop_token_ids ask of its tokenizer in vain."""
    check_stops(config.rollout, hub)
    template, wanted = hub.tokenizer.chat_template or "", config.model.chat_template_time
    now = on_main_first(place, lambda: pinned_time(run_dir, template, wanted))
    if now is not None and place.is_main:
        print(f"the chat template reads the clock, and is told {now.isoformat()} ({run_dir / TIME_FILE})", flush=True)
    return ChatTemplate(hub.tokenizer, max_demonstration_tokens, now, hub.end_token_ids)


def check_stops(rollout: RolloutConfig, hub: HubModel) -> None:
    """Raises UserError for stop tokens that the tokenizer has not, and for stop strings where it cannot stream text."""
    for token in rollout.stop_token_ids:
        if not 0 <= token < hub.num_token_ids:
            most = hub.num_token_ids - 1
            raise UserError(f"rollout.stop_token_ids: found {token}, expected ids of the tokenizer, 0 to {most}")
    if rollout.stop and backend(hub.tokenizer) is None:
        raise UserError(
            f"rollout.stop: found strings, expected rollout.stop_token_ids, as {hub.tokenizer_path} has no tokenizer.json"
        )


def build_parts(
    config: Config,
    run_dir: Path,
    place: Place,
    loggers: list,
    hub: HubModel,
    task: Task,
    chat: ChatTemplate,
    data: RunData,
    stop: Callable[[], str | None] = lambda: None,
    rewards: RewardPool | None = None,
) -> Parts:
    """Models, engine and streams: everything the trainer runs on. `rewards`: see `build_sampler`."""
    c = config
    timers = PhaseTimers(c.trainer.phase_timeout_s)
    method = c.method.build(c.rollout.longest)
    with platform.megatron():
        chunks = build_policy(hub.config, c.model, c.trainer.precision, hub.num_token_ids)
        load_hub_weights(chunks, hub.config, hub.path)
        policy = Policy(chunks, c.model, c.optim, c.trainer.precision, place)
        critic = _build_critic(c, hub, run_dir, place) if method.uses_critic else None
        reference = (
            ForwardModel(build_policy(hub.config, c.model, c.trainer.precision, hub.num_token_ids), c.model, place)
            if method.uses_reference
            else None
        )
    start_up.mark("models")
    room = c.data.max_prompt_tokens + method.added_prompt_tokens(c.data)
    prompt_tokens = max(c.data.max_prompt_tokens, min(room, hub.config.max_position_embeddings - c.rollout.longest))
    engine = build_engine(c, hub, policy.chunks, prompt_tokens)
    start_up.mark("engine")
    seed = c.trainer.seed
    sampler = build_sampler(c, engine, hub, chat, task, place, timers, prompt_tokens, rewards=rewards)
    method.bind(sampler)
    return Parts(
        config=c,
        run_dir=run_dir,
        place=place,
        method=method,
        controller=c.controller.build(),
        policy=policy,
        critic=critic,
        reference=reference,
        engine=engine,
        sampler=sampler,
        streams=data.streams(method, seed),
        data=data,
        timers=timers,
        throughput=Throughput(
            from_hub(hub.config.to_dict()), device_peak(c.trainer.precision, c.trainer.peak_tflops), place.world_size, timers
        ),
        writer=MetricsWriter(run_dir, loggers) if place.is_main else NullMetricsWriter(),
        progress=Progress(c.trainer.log_every, place.is_main),
        rollout_log=RolloutWriter(run_dir, c.trainer.save_rollouts, place.is_main),
        stop=stop,
        vocabulary=hub.num_token_ids,
    )


def _build_critic(config: Config, hub: HubModel, run_dir: Path, place: Place) -> Critic:
    if config.critic.path is not None:
        policy, folder = hub, run_dir / "critic_model"
        hub = on_main_first(place, lambda: prepare_critic(config.model, config.critic.path, folder, policy))
    chunks = build_critic(hub.config, config.model, config.trainer.precision)
    load_hub_weights(chunks, hub.config, hub.path)
    return Critic(chunks, config.model, config.critic.optim, config.trainer.precision, place)


def build_engine(config: Config, hub: HubModel, chunks: list, prompt_tokens: int | None = None) -> RolloutEngine:
    """The rollout engine that the config names, over the policy's chunks. `prompt_tokens`: the longest prompt, where a method's
    own are longer than the data's."""
    longest = (prompt_tokens or config.data.max_prompt_tokens) + config.rollout.longest
    if config.rollout.engine == "megatron":
        from nemo_amft.rollout.megatron import MegatronEngine

        core = backend(hub.tokenizer) if config.rollout.stop else None
        return MegatronEngine(chunks, config.rollout, hub.num_token_ids, longest, core)
    from nemo_amft.rollout.vllm import VLLMEngine

    def weights() -> Iterator[tuple[str, Tensor]]:
        return export_hub_weights(chunks, hub.config, config.rollout.sync_bucket_mb * 2**20)

    reader = hub.tokenizer if config.rollout.stop else None
    return VLLMEngine(hub.path, config.rollout, config.trainer.precision, longest, weights, hub.num_token_ids, tokenizer=reader)


def build_seeing_engine(config: Config, hub: HubModel, images: int) -> RolloutEngine:
    """A hub model with eyes, as vLLM runs it: no policy is behind it, so its weights are those of the folder. `images`: most of
    them in a prompt. Raises UserError for the engine that cannot, or a model that does not see."""
    if config.rollout.engine != "vllm":
        raise UserError(f"rollout.engine: found {config.rollout.engine}, expected vllm, which alone shows images to a model")
    if not hasattr(hub.config, "vision_config"):
        raise UserError(f"{hub.path}: found a {hub.config.model_type} model, expected one that sees, as the task shows images")
    from nemo_amft.rollout.vllm import VLLMEngine

    longest = config.data.max_prompt_tokens + config.rollout.longest
    reader = hub.tokenizer if config.rollout.stop else None
    return VLLMEngine(
        hub.path, config.rollout, config.trainer.precision, longest, None, hub.num_token_ids, images, tokenizer=reader
    )


def build_sampler(
    config: Config,
    engine: RolloutEngine,
    hub: HubModel,
    chat: ChatTemplate,
    task: Task,
    place: Place,
    timers: PhaseTimers,
    prompt_tokens: int | None = None,
    images: Images | None = None,
    rewards: RewardPool | None = None,
) -> Sampler:
    """Engine, chat template and verifier processes, as one. `rewards`: those of `reward_pool`, where they run already.
    Raises UserError for several turns without room for them."""
    turns = getattr(task, "max_turns", 1)
    if turns > 1 and config.rollout.max_conversation_tokens is None:
        raise UserError(
            f"rollout.max_conversation_tokens: found null, expected a number of tokens, as the task has up to {turns} turns"
        )
    return Sampler(
        engine,
        chat,
        rewards if rewards is not None else reward_pool(config, task, place),
        place,
        config.trainer.devices,
        timers,
        config.trainer.seed,
        config.rollout.seed_per_sample,
        tuple(dict.fromkeys((*hub.end_token_ids, *config.rollout.stop_token_ids))),
        prompt_tokens or config.data.max_prompt_tokens,
        config.rollout.longest,
        hasattr(task, "environment"),
        config.rollout.stop,
        images,
    )


def reward_pool(config: Config, task: Task, place: Place) -> RewardPool | None:
    """Verifier processes, begun and not waited for: one pool a node, owned by the node's first rank."""
    if place.rank % config.trainer.devices != 0:
        return None
    r = config.reward
    judge = load_function("reward.function", r.function) if r.function is not None else judge_of(task)
    if wanted(config.benchmarks) and not isinstance(task, BenchmarkTask):
        judge = TaskOrBenchmark(judge, BenchmarkVerifier(mathematics(config).thinking))
    return RewardPool(judge, r.workers, r.timeout_s, r.memory_mb)


def load_policy_alone(checkpoint: Path) -> tuple[list, HubModel]:
    """The policy of a training checkpoint on this one process, whatever layout wrote it. Raises UserError."""
    path = checkpoints.find(str(checkpoint))
    run_dir = path.parent.parent
    settings = run_dir / "config.yaml"
    if not settings.exists():
        raise UserError(f"{run_dir}: found no config.yaml, expected the run directory that the checkpoint belongs to")
    config = validate(OmegaConf.load(settings))
    alone = replace(
        config.model,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        virtual_pipeline_model_parallel_size=None,
        context_parallel_size=1,
        sequence_parallel=False,
    )
    place = groups.initialize(alone, config.trainer.seed, alone=True)
    hub = prepare_hub_model(alone, run_dir / "base_model")
    with platform.megatron():
        chunks = build_policy(hub.config, alone, config.trainer.precision)
    Checkpoints(path.parent, 1, place).load(path, {"policy": ForwardModel(chunks, alone, place)})
    return chunks, hub
