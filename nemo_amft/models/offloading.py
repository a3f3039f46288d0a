"""Optimiser state in host memory: what Megatron-Core 0.16.1's HybridDeviceOptimizer lacks for the way it is used here.

Megatron means it for the precision-aware optimiser, whose parameters are bf16 and whose fp32 masters the hybrid keeps. Here its
parameters are the distributed optimiser's fp32 main shards, of which it keeps copies in host memory. So it must not look for
masters, which fails when a checkpoint is loaded, and its copies have to follow where shards change otherwise than by a step.
"""

from __future__ import annotations

from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer


def hybrid_of(member: MegatronOptimizer) -> HybridDeviceOptimizer | None:
    """The hybrid optimiser inside `member`; None where nothing is offloaded."""
    return member.optimizer if isinstance(member.optimizer, HybridDeviceOptimizer) else None


def prepare(hybrid: HybridDeviceOptimizer) -> None:
    """Call before its state is made. Its parameters are their own masters; and its groups name optimiser classes, which a
    checkpoint is not to hold, since it is read without running code (weights_only)."""
    assert not hybrid.param_to_fp32_param, "parameters that are not fp32"
    hybrid.param_update_in_fp32 = False
    for group in hybrid.param_groups:
        for name in ("cpu_optimizer_cls", "gpu_optimizer_cls"):
            group.pop(name, None)


def leave_steps_to_parts(hybrid: HybridDeviceOptimizer) -> None:
    """Call after its state was loaded. Fused Adam counts steps in its groups, and before each step these get what the hybrid's
    own groups hold: with the step of a checkpoint among it, which nobody counts on, the bias correction would stand still."""
    for group in hybrid.param_groups:
        group.pop("step", None)


def copy_to_host(hybrid: HybridDeviceOptimizer) -> None:
    """Give the copies in host memory the present values of the parameters they stand for."""
    for parameter, copy in hybrid.gpu_params_map_cpu_copy.items():
        copy.data.copy_(parameter.data)


def take_model_parameters(member: MegatronOptimizer) -> None:
    """Copy the model's parameters to the main shards, and these to the host. Megatron leaves the shards of a hybrid optimiser
    as they are, since it takes them for the model's parameters themselves."""
    hybrid = hybrid_of(member)
    assert hybrid is not None
    member.optimizer = None
    try:
        member._copy_model_params_to_main_params()
    finally:
        member.optimizer = hybrid
    copy_to_host(hybrid)
