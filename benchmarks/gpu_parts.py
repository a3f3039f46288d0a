"""The parts of gpu_check.py: each runs in a process of its own, the only rank of its job, and returns rows."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, matmul_peak, model_flops, random_policy, sequences, small_qwen2
from transformers import PreTrainedConfig

from nemo_amft.algorithms.controllers.amft import MetaGradientConfig
from nemo_amft.algorithms.meta_update import MetaUpdate
from nemo_amft.algorithms.methods.base import Demonstration, Group, RLConfig, Sample, Term, rl_term, sft_term
from nemo_amft.algorithms.update import update_policy
from nemo_amft.config.architecture import from_hub
from nemo_amft.config.load import load
from nemo_amft.config.schema import Config, RolloutConfig
from nemo_amft.data.batching import Batch
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import set_schedule
from nemo_amft.observe.metrics import read_metrics
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import groups, platform
from nemo_amft.planning.footprint import RESERVED, footprint
from nemo_amft.planning.hardware import GPU
from nemo_amft.rollout.megatron import MegatronEngine
from nemo_amft.rollout.probe import probe
from nemo_amft.types import Example, Request, SamplingParams, TokenSequence, Verdict

ROOT = Path(__file__).parents[1]
K = 20
"""Steps between meta-updates (paper, Table 6), over which their cost is spread."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `status`: PASS, FAIL, or number where there is nothing to hold it against."""

    part: str
    name: str
    value: float | str
    unit: str = ""
    status: str = "number"


@dataclass(frozen=True)
class Scale:
    """How large the parts are."""

    prompts: int
    samples: int
    demonstrations: int
    prompt_tokens: int
    response_tokens: int
    micro_batch: int
    steps: int
    peak_sizes: tuple[int, ...]
    decode: tuple[int, int]
    """Responses at once, tokens each."""


GPU_SCALE = Scale(16, 4, 32, 128, 384, 8, 5, (4096, 8192), (128, 128))
CPU_SCALE = Scale(4, 2, 4, 16, 32, 4, 3, (512, 1024), (8, 16))


def scale() -> Scale:
    return GPU_SCALE if platform.is_gpu() else CPU_SCALE


def verdict(good: bool) -> str:
    return "PASS" if good else "FAIL"


# --- tests ----------------------------------------------------------------------------------------------------------------


def tests() -> list[Row]:
    """tests/gpu; on a CPU a rehearsal, where the two sides compared are both the CPU."""
    environment = os.environ | ({} if platform.is_gpu() else {"GPU_TESTS_DEVICE": "cpu"})
    command = [sys.executable, "-m", "pytest", "-W", "ignore", "-p", "no:cacheprovider", "tests/gpu"]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if found.returncode:
        print(found.stdout[-6000:], found.stderr[-2000:], sep="\n", file=sys.stderr)
    return [Row("tests", "pytest tests/gpu", found.stdout.strip().splitlines()[-1], "", verdict(found.returncode == 0))]


# --- the quickstart's losses ----------------------------------------------------------------------------------------------

WARMUP_STEPS, STEPS = 20, 2
LOSS_TOLERANCE = 2e-3
"""Relative. Two ways of summing in fp32 differ by 1e-6, which training at the quickstart's rate of 1e-3 spreads."""
KL_TOLERANCE = 1e-6
"""Of rollout engine and policy, which are one model."""


def quickstart(reference: dict[str, Any] | None) -> tuple[list[Row], dict[str, Any]]:
    """The first steps of the quickstart in fp32, on one process; `reference` is what a CPU found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "nemo_amft.train",
            "--config-name", "quickstart", "rollout=megatron", "trainer.devices=1", "model.tensor_model_parallel_size=1",
            f"warmup.steps={WARMUP_STEPS}", f"trainer.max_steps={STEPS}", "controller.meta_every=1", "validation.prompts=16",
            "validation.final_prompts=16", "validation.every=0", "checkpoint.every=0",
            f"exp_manager.explicit_log_dir={folder}/run", "exp_manager.create_tensorboard_logger=false",
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
        seconds, records = time.perf_counter() - started, read_metrics(f"{folder}/run")
    losses = {
        "warm-up": [r["loss/sft"] for r in records if r["phase"] == "warmup"],
        "first step": [r[name] for r in records if r["phase"] == "train" and r["step"] == 0 for name in ("loss/sft", "mu")],
    }
    kl = max(r["kl/rollout_vs_policy"] for r in records if r["phase"] == "train")
    rows = [
        Row("quickstart", f"{WARMUP_STEPS} steps of warm-up, {STEPS} of training, program start to end", seconds, "s"),
        Row("quickstart", "KL of decoding and training forward pass, fp32", kl, "nats", verdict(kl < KL_TOLERANCE)),
    ]
    for name, found in losses.items():
        if reference is None:
            rows.append(Row("quickstart", f"losses of {name}, recorded as the reference", found[-1]))
            continue
        off = max(abs(a - b) / abs(b) for a, b in zip(found, reference[name], strict=True))
        rows.append(Row("quickstart", f"losses of {name}, from the CPU's, relative", off, "", verdict(off < LOSS_TOLERANCE)))
    return rows, losses


# --- an AMFT step in bf16 ---------------------------------------------------------------------------------------------------


def planned(folder: Path, s: Scale, precision: str) -> Config:
    """A one-process AMFT run without critic at this scale, as the planner wants to see it."""
    return load(
        [
            "--config-name", "quickstart", f"model.path={folder}", "model.tensor_model_parallel_size=1", "trainer.devices=1",
            f"trainer.precision={precision}", "method=amft_grpo", "rollout=megatron", f"model.micro_batch_size={s.micro_batch}",
            "model.transformer_impl=local", f"data.max_prompt_tokens={s.prompt_tokens}",
            f"rollout.max_new_tokens={s.response_tokens}", f"data.max_demonstration_tokens={s.response_tokens}",
            f"data.prompts_per_step={s.prompts}", f"data.samples_per_prompt={s.samples}",
            f"data.demonstrations_per_step={s.demonstrations}",
        ],
        check=False,
    )  # fmt: skip


def sft_and_rl(s: Scale, vocabulary: int, seed: int) -> tuple[list[Term], list[Group], list[TokenSequence]]:
    """The two terms of a step over random tokens of full length, the rollouts' groups, and all their sequences."""
    length = s.prompt_tokens + s.response_tokens
    share = s.prompt_tokens / length
    imitated = sequences(s.demonstrations, (length, length), vocabulary, seed, share)
    drawn = sequences(s.prompts * s.samples, (length, length), vocabulary, seed + 1, share)
    samples = [
        Sample(
            replace(q, behavior_log_probs=(0.0,) * len(q.tokens)), "", Verdict(float(i % 2), bool(i % 2)), True, q.num_trained
        )
        for i, q in enumerate(drawn)
    ]
    found = [Group(Example(str(i), (), ""), tuple(samples[i : i + s.samples])) for i in range(0, len(samples), s.samples)]
    demonstrations = [Demonstration(Example(str(i), (), ""), q) for i, q in enumerate(imitated)]
    terms = [sft_term(demonstrations), rl_term(found, RLConfig(advantage="grpo"), s.response_tokens)]
    return terms, found, [*imitated, *drawn]


def shape_of(name: str) -> tuple[str, PreTrainedConfig]:
    """The shape called so, and on a CPU a small one in its place."""
    if platform.is_gpu():
        return name, SHAPES[name]
    hidden, layers = {"Qwen2-0.5B": (256, 4), "Qwen2-1.5B": (384, 6)}[name]
    return f"{hidden} x {layers} layers", small_qwen2(hidden, layers)


def amft_step(shape_name: str) -> list[Row]:
    """Steps of AMFT in bf16 on a model of this shape: plain, before a meta-update, and the meta-update itself."""
    s, (shown, shape) = scale(), shape_of(shape_name)
    part = f"bf16 step, {shown}"
    with tempfile.TemporaryDirectory() as folder:
        shape.save_pretrained(folder)
        config = planned(Path(folder), s, "bf16")
    place = groups.initialize(config.model, seed=1)
    policy = random_policy(shape, config.model, "bf16", place, config.optim)
    schedule = policy.scheduler(1e-6, 0.0, 100, 0.0, "constant")
    meta = MetaUpdate(policy, MetaGradientConfig(scale="cosine"))
    terms, found, drawn = sft_and_rl(s, shape.vocab_size, 5)
    work, timers, norms = model_flops(shape, drawn), PhaseTimers(), []
    peaks: list[float] = []
    seconds: dict[str, list[float]] = {"plain": [], "before": [], "meta": []}

    def timed(kind: str) -> None:
        set_schedule(schedule, 0)
        platform.synchronize()
        start = time.perf_counter()
        if kind == "meta":
            meta.estimate(found, 1.0)
        else:
            apart = meta.product if kind == "before" else None
            weights = {"sft": 0.5, "rl": 0.5}
            result = update_policy(policy, terms, lambda _: weights, timers, temperature=1.0, apart=apart)
            norms.append(result.grad_norm)
            if apart is not None:
                meta.keep(0, 1e-6, result)
        platform.synchronize()
        seconds[kind].append(time.perf_counter() - start)

    for kind in ("plain", "before", "meta"):  # kernels are compiled and buffers allocated
        timed(kind)
        seconds[kind].clear()
    for _ in range(s.steps):
        peaks.append(matmul_peak(torch.bfloat16, s.peak_sizes)[0])
        for kind in ("plain", "before", "meta"):
            timed(kind)
    peak, plain = max(peaks), statistics.median(seconds["plain"])
    # A meta-update draws val_prompts x val_samples rollouts besides, which "decode" prices; here are its passes alone.
    extra = statistics.median(b - p + m for p, b, m in zip(*seconds.values(), strict=True))
    tokens = sum(len(q.tokens) for q in drawn)
    rows = [
        Row(part, "gradient norms finite and above 0", min(norms), "", verdict(all(math.isfinite(n) and n > 0 for n in norms))),
        Row(part, f"step of {tokens} tokens", plain, "s"),
        Row(part, "training", work / plain / 1e12, "TFLOP/s"),
        Row(part, "best square matrix product", peak / 1e12, "TFLOP/s"),
        Row(part, "training over it", work / plain / peak, ""),
        Row(part, f"passes of a meta-update every {K} steps", extra / plain / K, "of a step"),
    ]
    return rows + memory_rows(part, config, shape, policy)


def memory_rows(part: str, config: Config, shape: Any, policy: Policy) -> list[Row]:
    """Peak memory against the plan. On a CPU the plan's side only: a process's resident memory is mostly libraries."""
    architecture = from_hub(shape.to_dict())
    assert architecture is not None
    gib = 2**30
    if not platform.is_gpu():
        plan = footprint(config, architecture, None)
        return [Row(part, "planned peak (compared on a GPU)", plan.peak / gib, "GiB")]
    total = torch.cuda.get_device_properties(platform.device()).total_memory / gib
    card = GPU("this", 1, 1, total, 1, 1, 1, 1)
    plan = footprint(config, architecture, card)
    expected = max(size for name, size in plan.phases.items() if name.startswith("training")) - RESERVED
    peak = platform.peak_memory_bytes()
    return [
        Row(part, "peak allocated", peak / gib, "GiB"),
        Row(part, "planned for training, reserve aside", expected / gib, "GiB"),
        Row(part, "peak over plan", peak / expected, "", verdict(peak < 1.1 * expected)),
    ]


# --- decoding -------------------------------------------------------------------------------------------------------------


def decode(shape_name: str) -> list[Row]:
    """Tokens a second of the policy's own decoding in bf16, and whether its log-probs are the policy's."""
    s, (shown, shape) = scale(), shape_of(shape_name)
    part = f"decode, {shown}"
    with tempfile.TemporaryDirectory() as folder:
        shape.save_pretrained(folder)
        config = planned(Path(folder), s, "bf16")
    place = groups.initialize(config.model, seed=1)
    policy = random_policy(shape, config.model, "bf16", place, config.optim)
    count, new = s.decode
    longest = s.prompt_tokens + new
    engine = MegatronEngine(policy.chunks, RolloutConfig(max_num_seqs=count, max_new_tokens=new), shape.vocab_size, longest)
    prompts = [q.tokens for q in sequences(count, (s.prompt_tokens, s.prompt_tokens), shape.vocab_size, 7)]
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    engine.generate(requests[:2], SamplingParams(4))
    platform.synchronize()
    start = time.perf_counter()
    drawn = engine.generate(requests, SamplingParams(new))
    seconds = time.perf_counter() - start
    tokens = sum(len(c.token_ids) for c in drawn)

    def log_probs(of: list[TokenSequence]) -> list[list[float]]:
        return [values.tolist() for values in policy.log_probs(Batch.whole(of))]

    tolerance = config.rollout.probe_tolerance
    off = probe(engine, log_probs, prompts[:4], SamplingParams(16), math.inf)["mean_abs_diff"]
    return [
        Row(part, f"{count} responses of {new} tokens, prompts of {s.prompt_tokens}", tokens / seconds, "tokens/s"),
        Row(part, "log-probs off the policy's, mean", off, "nats", verdict(off < tolerance)),
    ]


PARTS = {
    "tests": lambda _: (tests(), None),
    "quickstart": quickstart,
    "step 0.5B": lambda _: (amft_step("Qwen2-0.5B"), None),
    "step 1.5B": lambda _: (amft_step("Qwen2-1.5B"), None),
    "decode 0.5B": lambda _: (decode("Qwen2-0.5B"), None),
}
"""name -> function of the CPU's reference that returns (rows, what to record)."""
