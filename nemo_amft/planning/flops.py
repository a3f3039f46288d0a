"""Matrix-product FLOPs of a dense decoder, from its shape and the lengths of the sequences: no torch, no model.

A product of (m, k) and (k, n) counts 2 m k n. Norms, rotations and softmaxes are left out, and so is what a
program computes beyond the model's need (activations recomputed, padding, scores above the diagonal): these are model FLOPs,
the numerator of the utilisation of PaLM, appendix B (arXiv 2204.02311).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_amft.config.architecture import Architecture


def forward_flops(architecture: Architecture, lengths: Iterable[int], trained_tokens: int, *, output: bool = True) -> float:
    """FLOPs of one forward pass of the whole model, all its ranks together.

    Args:
        lengths: input positions of each sequence (one fewer than its tokens: the last predicts nothing).
        trained_tokens: positions that pass through the output layer; this project computes no logits elsewhere.
        output: False for a model without output layer, as the critic (whose value head is not worth counting).
    """
    layers = 0.0
    for length in lengths:
        # Scores and values are a product of `length` squared each, of which causality needs half.
        attention = 2 * architecture.query_size * length**2
        layers += 2 * architecture.layer_matrix_parameters * length + attention
    head = 2 * architecture.embedding_parameters * trained_tokens if output else 0
    return float(architecture.num_hidden_layers * layers + head)


def training_flops(architecture: Architecture, lengths: Iterable[int], trained_tokens: int, *, output: bool = True) -> float:
    """FLOPs of a forward and a backward pass: each product of the one becomes two in the other. Arguments as above."""
    return 3 * forward_flops(architecture, lengths, trained_tokens, output=output)


def generation_flops(architecture: Architecture, prompt_lengths: Sequence[int], response_lengths: Sequence[int]) -> float:
    """FLOPs of generating one response to each prompt with a key-value cache. The last token of a response is never read.

    Each prompt counts: what an engine saves where several responses share one is its own gain.
    """
    read = [p + r - 1 for p, r in zip(prompt_lengths, response_lengths, strict=True) if r]
    return forward_flops(architecture, read, sum(response_lengths))
