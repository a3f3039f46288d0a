"""The range of every number under conf/. Keys of plug-ins count only where the plug-in has them (None is never checked)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

_OPTIM = "{0}.lr {0}.min_lr {0}.eps {0}.weight_decay {0}.clip_grad"

_RANGES: list[tuple[str, Callable[[float], bool], str]] = [
    (
        "at least 1",
        lambda value: value >= 1,
        """
        trainer.num_nodes trainer.devices trainer.max_steps trainer.log_every
        model.tensor_model_parallel_size model.pipeline_model_parallel_size model.virtual_pipeline_model_parallel_size
        model.context_parallel_size model.expert_model_parallel_size model.micro_batch_size model.micro_batch_tokens
        model.recompute_num_layers model.logprob_chunk_tokens model.scratch.hidden_size
        model.scratch.intermediate_size model.scratch.num_hidden_layers
        model.scratch.num_attention_heads model.scratch.num_key_value_heads model.scratch.max_position_embeddings
        warmup.demonstrations_per_step warmup.target_entropy_batches
        data.prompts_per_step data.samples_per_prompt data.demonstrations_per_step data.validation_size
        data.max_prompt_tokens data.max_demonstration_tokens
        rollout.max_new_tokens rollout.tensor_model_parallel_size rollout.max_num_seqs rollout.sync_bucket_mb
        reward.workers reward.memory_mb validation.prompts validation.samples validation.final_prompts checkpoint.keep
        controller.meta_every controller.meta_gradient.val_prompts method.rl.updates_per_rollout_batch
        method.buffer_size method.every method.patterns method.pattern_chars method.max_chunks
        """,
    ),
    # The leave-one-out baseline of the meta-gradient needs another sample of the prompt.
    ("at least 2", lambda value: value >= 2, "controller.meta_gradient.val_samples"),
    (
        "at least 0",
        lambda value: value >= 0,
        f"""
        {_OPTIM.format("optim")} {_OPTIM.format("critic.optim")} critic.warmup_steps critic.value_clip
        warmup.steps warmup.lr warmup.select_every validation.benchmarks_every
        rollout.top_k rollout.kv_cache_gb rollout.probe_tolerance validation.every validation.temperature checkpoint.every
        controller.eta_mu controller.eta_h method.rl.clip_ratio method.rl.kl_coef
        method.kl_coef method.gate method.sft_coef method.sft_scale method.rl_scale method.gamma method.hint_steps
        method.hint_coef controller.rise_steps controller.fall_steps
        """,
    ),
    (
        "more than 0",
        lambda value: value > 0,
        """
        rollout.temperature trainer.phase_timeout_s trainer.meeting_timeout_s trainer.peak_tflops reward.timeout_s
        method.rl.importance_cap method.shaping
        """,
    ),
    (
        "more than 0 and at most 1",
        lambda value: 0 < value <= 1,
        "rollout.top_p rollout.gpu_memory_utilization optim.optimizer_offload_fraction critic.optim.optimizer_offload_fraction",
    ),
    (
        "a number from 0 to 1",
        lambda value: 0 <= value <= 1,
        """
        optim.lr_warmup_ratio critic.optim.lr_warmup_ratio warmup.lr_warmup_ratio data.max_truncated_fraction
        controller.mu_min controller.mu_max method.rl.gamma method.rl.lam
        controller.mu controller.peak controller.valley method.guided method.hint_start method.hint_end
        """,
    ),
    ("a number from 0 to below 1", lambda value: 0 <= value < 1, "controller.meta_gradient.trace_decay"),
]


def out_of_range(lookup: Callable[[str], Any]) -> Iterator[str]:
    """One line for each number outside its range. `lookup` gives the value at a dotted key, None where there is none."""
    for expected, within, keys in _RANGES:
        for key in keys.split():
            value = lookup(key)
            if isinstance(value, int | float) and not within(value):
                yield f"{key}: found {value}, expected {expected}"
    for section in ("optim", "critic.optim"):
        betas = lookup(f"{section}.betas")
        if not all(0 <= beta < 1 for beta in betas):
            yield f"{section}.betas: found {list(betas)}, expected numbers from 0 to below 1"
