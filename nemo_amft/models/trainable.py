"""A Megatron model that is being trained: DDP, optimiser, and the verbs of a step. Policy and critic are each one.

A step accumulates one or more loss terms into the gradient buffer and reduces it once:

    zero_gradients(); accumulate(...); scale_gradients(c); accumulate(...); finish_gradients(); step(...)

`main_gradients()` are then this rank's shards of the reduced gradient, as the optimiser sees them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config

from nemo_amft.config.schema import ModelConfig, OptimConfig
from nemo_amft.data.batching import Batch, Cut, MicroBatch, micro_batches, unpad
from nemo_amft.models import offloading
from nemo_amft.models.packing import PackedSequences
from nemo_amft.parallel import distributed_optimizer, platform
from nemo_amft.parallel.groups import Place
from nemo_amft.parallel.reductions import broadcast_from_last_stage

ForwardFn = Callable[[Any, MicroBatch], torch.Tensor]
LossFn = Callable[[torch.Tensor, MicroBatch], tuple[torch.Tensor, dict]]


class ForwardModel:
    """Model chunks of this rank and Megatron's schedule over them."""

    def __init__(self, chunks: list, model: ModelConfig, place: Place):
        self.chunks, self.model_config, self.place = chunks, model, place
        self.config = get_model_config(chunks[0])

    def micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """This rank's share cut into micro-batches that its layout can run."""
        model, place = self.model_config, self.place
        cut = Cut(
            size=model.micro_batch_size,
            tokens=model.micro_batch_tokens,
            packed=model.sequence_packing,
            length_multiple=place.tensor_size if model.sequence_parallel else 1,
            count_multiple=place.pipeline_size if model.virtual_pipeline_model_parallel_size else 1,
            context_rank=place.context_rank,
            context_size=place.context_size,
        )
        return micro_batches(batch, cut, platform.device())

    def forward(self, batch: Batch, forward: ForwardFn, pick: Callable[[torch.Tensor], torch.Tensor] = lambda output: output):
        """Outputs without gradients: one CPU float32 tensor [T] a sequence, aligned with its tokens, on every pipeline stage.

        `pick` makes [B, S] of the model's output.
        """
        micro = self.micro_batches(batch)
        one = torch.ones((), dtype=torch.int, device=platform.device())
        self._train(False)
        with torch.no_grad():
            outputs = self._run(micro, forward, lambda _, output: (output.sum(), one, pick(output)), forward_only=True)
        values = unpad(micro, outputs, batch) if self.place.is_last_stage else []
        return broadcast_from_last_stage(values, [len(s.tokens) for s in batch.sequences], self.place)

    def set_pass(self, temperature: float, entropy_gradient: bool = False) -> None:
        """Temperature of the log-probs and entropies computed from here on, and whether entropies carry gradients."""
        for chunk in self.chunks:
            module = chunk
            while hasattr(module, "module"):
                module = module.module
            module.logprob_temperature = temperature
            module.entropy_gradient = entropy_gradient

    def log_probs(self, share: Batch, *, temperature: float = 1.0) -> list[torch.Tensor]:
        """Log-prob of each trained token, 0 elsewhere: one float32 [T] a sequence."""
        self.set_pass(temperature)
        return self.forward(share, policy_forward, lambda output: output[0])

    def _train(self, on: bool) -> None:
        for chunk in self.chunks:
            chunk.train(on)

    def _run(self, micro: Sequence[MicroBatch], forward: ForwardFn, loss_fn: Callable, forward_only: bool) -> list:
        def forward_step(iterator, model):
            micro_batch = next(iterator)
            return forward(model, micro_batch), lambda output: loss_fn(micro_batch, output)

        interleaved = len(self.chunks) > 1
        with platform.megatron():
            return get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=[iter(micro) for _ in self.chunks] if interleaved else iter(micro),
                model=self.chunks if interleaved else self.chunks[0],
                num_microbatches=len(micro),
                seq_length=max(m.tokens.shape[1] for m in micro),
                micro_batch_size=self.model_config.micro_batch_size,
                forward_only=forward_only,
            )


def call_model(model: Any, micro: MicroBatch, **kwargs) -> torch.Tensor:
    """Call a model chunk on a micro-batch, padded or packed."""
    if (packing := micro.packing) is None:
        return model(micro.tokens, micro.position_ids, None, **kwargs)
    with_engine = get_model_config(model).transformer_impl == "transformer_engine"
    tokens, sequences = packing.take(micro.tokens), PackedSequences.of(packing, with_engine)
    return model(tokens, packing.position_ids, None, packed_seq_params=sequences, **kwargs)


def policy_forward(model: Any, micro: MicroBatch) -> torch.Tensor:
    """On the last stage [2, B, S]: log-prob and entropy of each trained token. On the others what the next stage wants."""
    return call_model(model, micro, labels=micro.labels, loss_mask=micro.mask)


class TrainableModel(ForwardModel):
    """Model chunks of this rank with their DDP wrapper and optimiser."""

    def __init__(self, chunks: list, model: ModelConfig, optim: OptimConfig, precision: str, place: Place):
        self.optim_config = optim
        self.bf16 = precision == "bf16"
        with platform.megatron():
            chunks = self._wrap(chunks, optim)
            config = self._optimizer_config(optim)
            self.optimizer: MegatronOptimizer = get_megatron_optimizer(config, chunks, get_standard_config_overrides(config))
        super().__init__(chunks, model, place)
        self._create_adam_state()
        # The step reduces once, after its last term (`finish_gradients`); the schedules must not.
        self.config.finalize_model_grads_func = None
        self.config.grad_scale_func = None

    def _wrap(self, chunks: list, optim: OptimConfig) -> list[DistributedDataParallel]:
        ddp = DistributedDataParallelConfig(
            use_distributed_optimizer=optim.use_distributed_optimizer,
            overlap_grad_reduce=optim.overlap_grad_reduce,
            overlap_param_gather=optim.overlap_param_gather,
            grad_reduce_in_fp32=True,
        )
        config = get_model_config(chunks[0])
        return [DistributedDataParallel(config, ddp, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)]

    def _optimizer_config(self, optim: OptimConfig) -> OptimizerConfig:
        return OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            min_lr=optim.min_lr,
            adam_beta1=optim.betas[0],
            adam_beta2=optim.betas[1],
            adam_eps=optim.eps,
            weight_decay=optim.weight_decay,
            clip_grad=optim.clip_grad,
            bf16=self.bf16,
            params_dtype=torch.bfloat16 if self.bf16 else torch.float32,
            use_distributed_optimizer=optim.use_distributed_optimizer,
            overlap_param_gather=optim.overlap_param_gather,
            optimizer_cpu_offload=optim.optimizer_cpu_offload,
            optimizer_offload_fraction=optim.optimizer_offload_fraction,
        )

    def _create_adam_state(self) -> None:
        """Give Adam the state it would make in its first step, so that a model can be saved, or loaded into, before it."""
        for member in self._optimizers():
            hybrid = offloading.hybrid_of(member)
            if hybrid is not None:
                offloading.prepare(hybrid)
                for part in hybrid.sub_optimizers:
                    _create_moments(part)
                hybrid._sync_sub_optimizers_state_to_hdo()
            elif isinstance(member.optimizer, torch.optim.Adam | torch.optim.AdamW):
                distributed_optimizer.count_steps_of_padding(member.optimizer)
                _create_moments(member.optimizer)
            else:
                with platform.megatron():
                    member.init_state_fn(member.optimizer, member.config)  # fused Adam: Megatron knows how

    def accumulate(
        self, micro: Sequence[MicroBatch], forward: ForwardFn, loss_fn: LossFn, weight: float, last: bool
    ) -> list[dict]:
        """Forward and backward of one loss term, added with `weight` into the gradient buffer. Returns each micro-batch's
        metrics (on the last pipeline stage; elsewhere an empty list).

        `last` says that no further term follows before `finish_gradients`: only then may an overlapped reduction start.
        """
        one = torch.ones((), dtype=torch.int, device=platform.device())

        def weighted(micro_batch: MicroBatch, output: torch.Tensor):
            loss, metrics = loss_fn(output, micro_batch)
            return loss * weight, one, metrics | {"padding": micro_batch.padding}

        self._train(True)
        self.config.no_sync_func = self._no_sync if last else None
        with contextlib.nullcontext() if last else self._no_sync():
            return self._run(micro, forward, weighted, forward_only=False)

    @contextlib.contextmanager
    def _no_sync(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for chunk in self.chunks:
                stack.enter_context(chunk.no_sync())
            yield

    # --- gradients --------------------------------------------------------------------------------------------------------

    def zero_gradients(self) -> None:
        """Empty the gradient buffer."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def scale_gradients(self, factor: float) -> None:
        """Multiply all that was accumulated since `zero_gradients`, before it is reduced."""
        for chunk in self.chunks:
            chunk.scale_gradients(factor)

    def finish_gradients(self) -> None:
        """Reduce the buffer over data-parallel ranks, sequence-parallel norms and tied embeddings, once; hand it to the
        optimiser."""
        with platform.megatron():
            finalize_model_grads(self.chunks)
            self.optimizer.prepare_grads()

    def main_parameters(self) -> list[torch.nn.Parameter]:
        """The optimiser's parameters on this rank: fp32 shards, every element of the model on the ranks that hold it."""
        return [parameter for member in self._optimizers() for parameter in member.get_parameters()]

    def main_gradients(self) -> list[torch.Tensor]:
        """Reduced gradients of `main_parameters`, in their order; valid between `finish_gradients` and `zero_gradients`."""
        return [parameter.grad for parameter in self.main_parameters()]

    def _optimizers(self) -> list[MegatronOptimizer]:
        members = getattr(self.optimizer, "chained_optimizers", [self.optimizer])
        return [member for member in members if not getattr(member, "is_stub_optimizer", False)]

    # --- update -----------------------------------------------------------------------------------------------------------

    def step(self) -> float:
        """Clip and update from the finished gradients. Returns the global gradient norm before clipping; where it is not finite
        nothing is updated, and the caller has to say so.

        The gradients are taken as `finish_gradients` left them (or as they were changed in place since), which is why this is
        not `optimizer.step()`: that would copy them from the buffer again.
        """
        with platform.megatron():
            clip = self.optim_config.clip_grad
            norm = float(self.optimizer.get_grad_norm())
            if clip > 0.0 and norm > clip:
                # Megatron's clip_grad_by_total_norm_fp32 divides by (norm + 1e-6); so does this.
                coefficient = clip / (norm + 1.0e-6)
                for gradient in self.main_gradients():
                    gradient.mul_(coefficient)
            if math.isfinite(norm):
                self.optimizer.step_with_ready_grads()
        return norm

    def gather_parameters(self) -> None:
        """Complete the parameters, where their gathering is left to the next forward pass, for what reads them otherwise."""
        if self.optim_config.overlap_param_gather:
            with platform.megatron():
                for chunk in self.chunks:
                    chunk.start_param_sync(force_sync=True)

    def agrees_with(self, state: dict[str, Any]) -> bool:
        """Whether this rank's part of a checkpoint's optimiser state has for main weights what the model holds."""
        if "param_state" not in state:  # not of the distributed optimiser
            return True
        (member,) = self._optimizers()
        return distributed_optimizer.differing_weights(member, state["param_state"]) == 0

    def load_optimizer(self, state: dict[str, Any]) -> list[str]:
        """Take over what `optimizer.sharded_state_dict` gave and a checkpoint kept, but for betas and epsilon: those stay as
        configured. Returns which of them the checkpoint had otherwise, as "name: before -> now"."""
        self._match_groups(state)
        self.optimizer.load_state_dict(state)
        changed = self._set_adam()
        for hybrid in filter(None, map(offloading.hybrid_of, self._optimizers())):
            offloading.leave_steps_to_parts(hybrid)
            offloading.copy_to_host(hybrid)
        return changed

    def _match_groups(self, state: dict[str, Any]) -> None:
        """Give the saved groups the present bounds of the rate. megatron-core 0.19 finds a group by them, besides what tells
        one group from another, and they are the schedule's at the time: of warm-up, or of another configuration."""
        (member,) = self._optimizers()
        present = member.optimizer.param_groups[0]
        for group in state.get("optimizer", state)["param_groups"]:
            for name in ("max_lr", "min_lr"):
                group.pop(name, None)
                if name in present:
                    group[name] = present[name]

    def _set_adam(self) -> list[str]:
        """Give the optimiser the configured betas and epsilon; rate and decay come with each step (`set_schedule`). Returns
        what was otherwise."""
        wanted, changed = {"betas": self.optim_config.betas, "eps": self.optim_config.eps}, dict[str, None]()
        for member in self._optimizers():
            for group in member.optimizer.param_groups:
                had = {"betas": tuple(group["betas"]), "eps": group["eps"]}
                changed |= {f"{name}: {had[name]} -> {now}": None for name, now in wanted.items() if had[name] != now}
                group |= wanted
        return list(changed)

    def reload_parameters(self) -> None:
        """Have the optimiser start from the model's present parameters, after these were set otherwise than by it."""
        with platform.megatron():
            self.optimizer.reload_model_params()
            for member in self._optimizers():
                if offloading.hybrid_of(member) is not None:
                    offloading.take_model_parameters(member)

    def scheduler(self, max_lr: float, min_lr: float, steps: int, warmup_ratio: float, style: str) -> OptimizerParamScheduler:
        """Megatron's learning-rate schedule over `steps` steps of this model's optimiser."""
        warmup = int(warmup_ratio * steps)
        with platform.megatron():
            return OptimizerParamScheduler(
                self.optimizer,
                init_lr=0.0,
                max_lr=max_lr,
                min_lr=min_lr,
                lr_warmup_steps=warmup,
                lr_decay_steps=max(steps, warmup) + 1,  # min_lr comes after the last step: at it, nothing would be learned
                lr_decay_style=style,
                start_wd=self.optim_config.weight_decay,
                end_wd=self.optim_config.weight_decay,
                wd_incr_steps=0,
                wd_incr_style="constant",
                use_checkpoint_opt_param_scheduler=False,
                override_opt_param_scheduler=True,
            )


def _create_moments(optimizer: torch.optim.Optimizer) -> None:
    """Adam's state before its first step. torch counts steps per parameter, fused Adam per group."""
    counted = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = ({"step": torch.tensor(0.0)} if counted else {}) | moments


def set_schedule(scheduler: OptimizerParamScheduler, step: int) -> float:
    """Set the learning rate of step `step` (0-based) and return it.

    The schedule is a function of the step alone, so there is nothing of it to save. Counted from 1, so that a rising start
    does not spend its first step at rate 0.
    """
    for group in scheduler.optimizer.param_groups:
        # Megatron's groups carry the optimiser's own peak, which would win over this schedule's (warm-up has a peak of its
        # own).
        group["max_lr"], group["min_lr"] = scheduler.max_lr, scheduler.min_lr
    scheduler.num_steps = step + 1
    scheduler.step(increment=0)
    return max((float(group["lr"]) for group in scheduler.optimizer.param_groups), default=0.0)
