"""Keeps a vLLM model to the tokenizer's ids, inside its worker. Written against vLLM 0.32.

A head often has more rows than the tokenizer has ids. What vLLM has settings for is slow or something else: `allowed_token_ids`
of a request, and a logits processor of one's own, mask all rows of the batch in each step, on top of log-probs that are taken
before (top-p, top-k); with another vocab_size by `hf_overrides` it refuses the weights in a model's files, whose rows are more.
Its `LogitsProcessor` layer cuts logits to `org_vocab_size` columns in any case, which leaves out rows that it has added itself,
and a cut is a view. So that number is set: log-probs, truncation and sampling all come after it. It is read in each step,
outside of compiled code and CUDA graphs.
"""

from __future__ import annotations

from typing import Any


def limit(worker: Any, vocab_size: int) -> None:
    """Cut the logits of the worker's model to its first `vocab_size` columns."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    layers = [layer for layer in worker.model_runner.get_model().modules() if isinstance(layer, LogitsProcessor)]
    assert layers, "the model has no LogitsProcessor"
    for layer in layers:
        layer.org_vocab_size = min(layer.org_vocab_size, vocab_size)
