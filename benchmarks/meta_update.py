"""What the controller costs: `python benchmarks/meta_update.py`, from the repository's root, some five minutes on two cores.

One quickstart run with K = 4 interleaves by itself: plain steps, the step before a meta-update (gradients kept apart) and
meta-update steps follow one another. Each special step is divided by the median of the plain steps on both sides of it.
Separately, log-prob with entropy is timed against log-prob alone, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.utils.checkpoint
from common import write_result

from nemo_amft.models.logprob import vocab_parallel_log_prob_and_entropy
from nemo_amft.observe.metrics import read_metrics

K, STEPS = 4, 61


def step_seconds(folder: str) -> list[float]:
    """Seconds of each training step, all phases but checkpoints and probes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nemo_amft.train",
        "--config-name", "quickstart", f"exp_manager.explicit_log_dir={folder}", f"trainer.max_steps={STEPS}",
        "warmup.steps=60", f"controller.meta_every={K}", "validation.every=0", "checkpoint.every=0",
        "checkpoint.export_hf=false",
    ]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    left_out = ("seconds/checkpoint", "seconds/probe")
    return [
        sum(v for k, v in r.items() if k.startswith("seconds/") and k.count("/") == 1 and k not in left_out)
        for r in read_metrics(folder)
        if r["phase"] == "train"
    ]


def ratios(seconds: list[float], offset: int) -> list[float]:
    """Each step at `offset` before a meta-update over the median of the plain steps around it."""
    found = []
    for meta in range(K, len(seconds) - K, K):
        plain = [s for t, s in enumerate(seconds) if abs(t - meta) <= K and t % K not in (0, K - 1)]
        found.append(seconds[meta - offset] / statistics.median(plain))
    return found


def entropy_ratios(rounds: int = 30, tokens: int = 512, hidden: int = 512, vocabulary: int = 32000) -> list[float]:
    """Forward and backward of log-prob with entropy over cross entropy alone, in the same chunks, logits recomputed alike."""
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden, requires_grad=True)
    w = (0.1 * torch.randn(vocabulary, hidden)).requires_grad_()  # logits of a few nats, as a language model has
    labels = torch.randint(0, vocabulary, (tokens,))

    def with_entropy() -> None:
        log_prob, _ = vocab_parallel_log_prob_and_entropy(x, w, labels, vocab_size=vocabulary, chunk_tokens=256)
        log_prob.sum().backward()

    def chunk_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.cross_entropy(x @ w.T, y, reduction="sum")

    def alone() -> None:
        chunks = zip(x.split(256), labels.split(256), strict=True)
        sum(torch.utils.checkpoint.checkpoint(chunk_loss, a, b, use_reentrant=False) for a, b in chunks).backward()

    def timed(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    with_entropy(), alone()
    return [timed(with_entropy) / timed(alone) for _ in range(rounds)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = step_seconds(folder)
    meta, before = (statistics.median(ratios(seconds, offset)) for offset in (0, 1))
    amortised = {k: 1 + (meta - 1 + before - 1) / k for k in (K, 20)}
    entropy = statistics.median(entropy_ratios())
    rows = [
        ("meta-update step / plain step (64 x 4 validation rollouts)", meta),
        ("step before it, gradients kept apart / plain step", before),
        ("all steps at K = 4 / plain", amortised[K]),
        ("all steps at K = 20 / plain", amortised[20]),
        ("log-prob with entropy / cross entropy alone, both in chunks", entropy),
    ]
    print("\n".join(f"{name:<62}{value:6.3f}" for name, value in rows))
    print(write_result("meta_update", {"median_ratios": dict(rows), "step_seconds": seconds}))


if __name__ == "__main__":
    main()
