"""Log-prob and entropy of target tokens from hidden states, without the logits of all tokens at once.

Shapes: T tokens, H hidden, V this rank's rows of the (padded) vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def vocab_parallel_log_prob_and_entropy(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    vocab_size: int,
    chunk_tokens: int,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target, and exact entropy of the distribution it belongs to.

    The distribution is softmax(hidden @ weight^T / temperature) over the first `vocab_size` rows of the weight whose shards, in
    rank order, `tp_group` holds; the rest is padding and takes no part. Logits exist for `chunk_tokens` tokens at a time, and
    are computed again in the backward pass: what is kept is two numbers a token.

    Args:
        hidden_TH: the same on every rank of `tp_group`. Its gradient is this rank's part; the caller sums over the group
            (Megatron's copy_to_tensor_model_parallel_region or gather_from_sequence_parallel_region do).
        weight_VH: this rank's rows. Its gradient is complete, summed over chunks in fp32.
        targets_T: int64 ids below `vocab_size`, the same on every rank.
        tp_group: None for one rank.

    Returns:
        (log_prob_T, entropy_T), float32 (float64 for float64 input), the same on every rank; both carry gradients.
        T may be 0: nothing is computed and backward gives zeros.
    """
    return _LogProbAndEntropy.apply(hidden_TH, weight_VH, targets_T, vocab_size, chunk_tokens, temperature, tp_group)


class _LogProbAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TH, weight_VH, targets_T, vocab_size, chunk_tokens, temperature, tp_group):
        shard = _Shard.of(weight_VH, targets_T, vocab_size, temperature, tp_group)
        log_prob_T, entropy_T, log_sum_T = hidden_TH.new_empty(3, targets_T.numel(), dtype=shard.dtype).unbind()
        for chunk in _chunks(targets_T.numel(), chunk_tokens):
            logits_CV = shard.logits(hidden_TH[chunk])
            # A rank whose rows are all padding has no columns to take a maximum over.
            maximum_C = logits_CV.amax(-1) if shard.num_rows else logits_CV.new_full(logits_CV.shape[:1], -torch.inf)
            _all_reduce(maximum_C, dist.ReduceOp.MAX, tp_group)
            logits_CV.sub_(maximum_C[:, None])
            target_C = shard.pick_targets(logits_CV, chunk)
            exp_CV = logits_CV.exp()
            sums_3C = torch.stack([target_C, exp_CV.sum(-1), torch.linalg.vecdot(exp_CV, logits_CV)])
            _all_reduce(sums_3C, dist.ReduceOp.SUM, tp_group)
            target_C, sum_C, weighted_C = sums_3C
            log_prob_T[chunk] = target_C - sum_C.log()
            entropy_T[chunk] = sum_C.log() - weighted_C / sum_C
            log_sum_T[chunk] = sum_C.log() + maximum_C
        ctx.save_for_backward(hidden_TH, weight_VH, targets_T, log_sum_T, entropy_T)
        ctx.options = (vocab_size, chunk_tokens, temperature, tp_group)
        ctx.set_materialize_grads(False)  # an entropy that nothing is differentiated through costs nothing in backward
        return log_prob_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_prob_T, grad_entropy_T):
        hidden_TH, weight_VH, targets_T, log_sum_T, entropy_T = ctx.saved_tensors
        vocab_size, chunk_tokens, temperature, tp_group = ctx.options
        if grad_log_prob_T is None:
            grad_log_prob_T = torch.zeros_like(log_sum_T)
        shard = _Shard.of(weight_VH, targets_T, vocab_size, temperature, tp_group)
        grad_hidden_TH = torch.empty_like(hidden_TH) if ctx.needs_input_grad[0] else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=shard.dtype) if ctx.needs_input_grad[1] else None
        for chunk in _chunks(targets_T.numel(), chunk_tokens):
            # Of scaled logit j, y being the target: d log_prob is [j = y] - p_j, d entropy is -p_j (log p_j + entropy).
            log_p_CV = shard.logits(hidden_TH[chunk]).sub_(log_sum_T[chunk, None])
            if grad_entropy_T is None:
                grad_CV = log_p_CV.exp_().mul_(-grad_log_prob_T[chunk, None])
            else:
                p_CV = log_p_CV.exp()
                grad_CV = log_p_CV.add_(entropy_T[chunk, None]).mul_(grad_entropy_T[chunk, None])
                grad_CV.add_(grad_log_prob_T[chunk, None]).mul_(p_CV).neg_()
            shard.add_at_targets(grad_CV, chunk, grad_log_prob_T[chunk])
            grad_CV = shard.over_temperature(grad_CV).to(weight_VH.dtype)
            if grad_hidden_TH is not None:
                torch.mm(grad_CV, shard.weight_VH, out=grad_hidden_TH[chunk])
            if grad_weight_VH is not None:
                _add_product(grad_weight_VH[: shard.num_rows], grad_CV.t(), hidden_TH[chunk])
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None, None, None


@dataclass(frozen=True)
class _Shard:
    """This rank's rows of the vocabulary, padding cut off, and the targets among them."""

    weight_VH: Tensor
    column_T: Tensor
    """Column of each target in this rank's logits; 0 where the target is another rank's."""
    is_mine_T: Tensor
    temperature: float
    dtype: torch.dtype

    @classmethod
    def of(cls, weight_VH: Tensor, targets_T: Tensor, vocab_size: int, temperature: float, tp_group) -> _Shard:
        first = (0 if tp_group is None else tp_group.rank()) * weight_VH.size(0)
        weight_VH = weight_VH[: max(0, vocab_size - first)]
        is_mine_T = (targets_T >= first) & (targets_T < first + weight_VH.size(0))
        dtype = torch.promote_types(weight_VH.dtype, torch.float32)
        return cls(weight_VH, (targets_T - first).where(is_mine_T, 0), is_mine_T, temperature, dtype)

    @property
    def num_rows(self) -> int:
        return self.weight_VH.size(0)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Scaled logits (C, V) in fp32, newly allocated; the product itself is in the weight's dtype."""
        return self.over_temperature((hidden_CH @ self.weight_VH.t()).to(self.dtype))

    def over_temperature(self, x_CV: Tensor) -> Tensor:
        """In place."""
        return x_CV if self.temperature == 1.0 else x_CV.div_(self.temperature)

    def pick_targets(self, logits_CV: Tensor, chunk: slice) -> Tensor:
        """The targets' entries (C,), 0 where another rank has the target."""
        if self.num_rows == 0:
            return logits_CV.new_zeros(logits_CV.size(0))
        return logits_CV.gather(1, self.column_T[chunk, None])[:, 0].where(self.is_mine_T[chunk], 0.0)

    def add_at_targets(self, grad_CV: Tensor, chunk: slice, grad_C: Tensor) -> None:
        """Add grad_C (C,) to the targets' entries, in place."""
        if self.num_rows:
            grad_CV.scatter_add_(1, self.column_T[chunk, None], grad_C.where(self.is_mine_T[chunk], 0.0)[:, None])


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; without a temporary where the dtypes allow."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk_tokens, num_tokens)) for start in range(0, num_tokens, chunk_tokens))


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType, tp_group: dist.ProcessGroup | None) -> None:
    if tp_group is not None and tp_group.size() > 1:
        dist.all_reduce(tensor, operation, group=tp_group)
