"""Builds this rank's part of the policy or critic from a hub config.

What is returned is bare: no Float16Module, no DistributedDataParallel. bf16 needs no Float16Module here, since parameters are
created in params_dtype, tokens are integers and both models return float32 themselves; wrapping in one is harmless.
Weights start as zeros (see `_zeros`) and come from `nemo_amft.models.hub_weights`. On a GPU Megatron's RNG tracker must be
seeded first (model_parallel_cuda_manual_seed). On a CPU, call under `platform.megatron()` after `platform.install()`.
Check a config with `refuse_unsupported` (nemo_amft.models.architecture) before building from it.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import PreTrainedConfig

from nemo_amft.config.schema import ModelConfig
from nemo_amft.models.architecture import LLAMA3_SCALING, Architecture
from nemo_amft.models.attention import CoreAttention
from nemo_amft.models.critic_model import ValueModel
from nemo_amft.models.norm import RMSNorm
from nemo_amft.models.policy_model import PolicyModel
from nemo_amft.parallel import platform
from nemo_amft.types import UserError

Precision = Literal["32", "bf16"]


def build_policy(
    hub_config: PreTrainedConfig, model: ModelConfig, precision: Precision, num_token_ids: int | None = None
) -> list[PolicyModel]:
    """This rank's chunks of the policy, one a virtual pipeline stage, on `platform.device()`. `num_token_ids`: the tokenizer's
    (HubModel.num_token_ids), which alone it predicts; None: all rows of the hub model."""
    architecture = Architecture.from_hub(hub_config)
    return _build_chunks(
        PolicyModel,
        architecture,
        model,
        transformer_config(hub_config, model, precision),
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        true_vocab_size=architecture.vocab_size if num_token_ids is None else num_token_ids,
        logprob_chunk_tokens=model.logprob_chunk_tokens,
    )


def build_critic(hub_config: PreTrainedConfig, model: ModelConfig, precision: Precision) -> list[ValueModel]:
    """This rank's chunks of the critic, laid out as the policy; its value head is zero."""
    architecture = Architecture.from_hub(hub_config)
    config = transformer_config(hub_config, model, precision)
    return _build_chunks(ValueModel, architecture, model, config, share_embeddings_and_output_weights=False)


def uses_transformer_engine(model: ModelConfig) -> bool:
    """Whether layers come from Transformer Engine.

    Raises:
        UserError: it is asked for and there is no GPU or no package.
    """
    available = platform.is_gpu() and importlib.util.find_spec("transformer_engine") is not None
    if model.transformer_impl == "transformer_engine" and not available:
        raise UserError("model.transformer_impl=transformer_engine needs a GPU and the transformer_engine package")
    chosen = available and model.transformer_impl != "local"
    return chosen


def transformer_config(hub_config: PreTrainedConfig, model: ModelConfig, precision: Precision) -> TransformerConfig:
    """Megatron's config of a hub model on a layout. Each model gets its own: DDP and the schedules hang callbacks on it."""
    architecture = Architecture.from_hub(hub_config)
    with_engine = uses_transformer_engine(model)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    interleaved = model.virtual_pipeline_model_parallel_size is not None
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        kv_channels=architecture.head_dim,
        layernorm_epsilon=architecture.norm_epsilon,
        normalization="RMSNorm",
        qk_layernorm=architecture.qk_norm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # precision
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        use_cpu_initialization=not platform.is_gpu(),
        init_method=_zeros,
        output_layer_init_method=_zeros,
        # layout
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=model.virtual_pipeline_model_parallel_size,
        context_parallel_size=model.context_parallel_size,
        sequence_parallel=model.sequence_parallel,
        variable_seq_lengths=model.pipeline_model_parallel_size > 1,  # micro-batches differ in length
        moe_token_dispatcher_type="alltoall",  # Megatron refuses variable lengths with the default one, experts or none
        overlap_p2p_comm=interleaved,  # the interleaved schedule is silently wrong with batched sends (gradient norm 231 for 3)
        batch_p2p_comm=not interleaved,
        recompute_granularity=model.recompute_granularity,
        recompute_method=model.recompute_method,
        recompute_num_layers=model.recompute_num_layers,
        calculate_per_token_loss=True,  # losses are (sum, count) and divided once, by the trainer
        transformer_impl="transformer_engine" if with_engine else "local",
        # kernels: fusions where their CUDA extension or compiler is there
        bias_activation_fusion=platform.is_gpu(),
        bias_dropout_fusion=platform.is_gpu(),
        apply_rope_fusion=with_engine,
        masked_softmax_fusion=False,
        persist_layer_norm=with_engine,
        gradient_accumulation_fusion=platform.is_gpu() and _importable("fused_weight_gradient_mlp_cuda"),
    )


def _build_chunks(
    model_class: type[GPTModel], architecture: Architecture, model: ModelConfig, config: TransformerConfig, **kwargs
) -> list[GPTModel]:
    chunks = []
    for stage in range(model.virtual_pipeline_model_parallel_size or 1):
        vp_stage = None if model.virtual_pipeline_model_parallel_size is None else stage
        chunk = model_class(
            config,
            _block_spec(config, uses_transformer_engine(model), vp_stage),
            vocab_size=architecture.padded_vocab_size(model.tensor_model_parallel_size),
            max_sequence_length=architecture.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            position_embedding_type="rope",
            rotary_base=architecture.rope_theta,
            vp_stage=vp_stage,
            **kwargs,
        )
        if (scaling := architecture.rope_scaling) is not None:
            # GPTModel's own switch knows Llama 3's factors 1, 4 and 8192 only.
            rotary = chunk.rotary_pos_emb
            rotary.inv_freq = rotary._apply_scaling(rotary.inv_freq, **{key: scaling[key] for key in LLAMA3_SCALING})
        chunks.append(chunk.to(platform.device()))
    return chunks


def _block_spec(config: TransformerConfig, with_engine: bool, vp_stage: int | None) -> TransformerBlockSubmodules | ModuleSpec:
    """Layers of one chunk. The local spec gets this project's norm and attention in place of Megatron's own torch ones."""
    if with_engine:
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = CoreAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def _zeros(weight: torch.Tensor) -> None:
    """Initialiser of weights that are loaded right after.

    perform_initialization=False would be shorter, but Megatron marks shards (`tensor_model_parallel`) while it initialises:
    unmarked, they would be taken for duplicates in the gradient norm.
    """
    torch.nn.init.zeros_(weight)


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
