"""Rollouts against bare vLLM and transformers.generate: `OMP_NUM_THREADS=2 python benchmarks/rollout.py`, some five minutes.

One process holds a model of SmolLM2-135M's shape, random weights, in four hands: the policy with our engine, vLLM as a user
would start it, and transformers. All draw N responses of the same length to the same prompts; contenders take turns, a round is
one turn of each, and what counts is the median over rounds of the seconds of a contender over ours. Before each turn vLLM's
prefix cache is emptied, as it is after every weight sync.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import write_result
from shapes import SHAPES
from transformers import AutoModelForCausalLM, PreTrainedModel

from nemo_amft.config.schema import ModelConfig, RolloutConfig
from nemo_amft.models.builder import build_policy
from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights
from nemo_amft.parallel import groups, platform
from nemo_amft.rollout import vllm_process
from nemo_amft.rollout.vllm import VLLMEngine
from nemo_amft.types import Request, SamplingParams

SHAPE = "SmolLM2-135M"
KV_CACHE_GB = 1.0


def random_model(folder: Path) -> PreTrainedModel:
    """transformers' model of the shape, and the same in `folder`."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(SHAPES[SHAPE], dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model


def our_engine(folder: Path, sequences: int, longest: int, precision: str) -> VLLMEngine:
    """The engine as a run builds it, awake."""
    model, hub_config = ModelConfig(), SHAPES[SHAPE]
    groups.initialize(model, seed=1)
    with platform.megatron():
        chunks = build_policy(hub_config, model, precision)
    load_hub_weights(chunks, hub_config, folder)
    rollout = RolloutConfig(max_num_seqs=sequences, kv_cache_gb=KV_CACHE_GB)
    engine = VLLMEngine(folder, rollout, precision, longest, lambda: export_hub_weights(chunks, hub_config))
    engine.wake()
    return engine


def bare_vllm(folder: Path, sequences: int, longest: int, precision: str):
    """vLLM with its own defaults, but the same limits. As ours it is eager: compiling takes minutes on a CPU."""
    import vllm

    with vllm_process.undisturbed():
        return vllm.LLM(
            str(folder),
            dtype="bfloat16" if precision == "bf16" else "float32",
            skip_tokenizer_init=True,
            distributed_executor_backend="external_launcher",  # the world is there already
            kv_cache_memory_bytes=int(KV_CACHE_GB * 2**30),
            max_model_len=longest,
            max_num_seqs=sequences,
            enforce_eager=True,
        )


def through_vllm(llm, prompts: list[tuple[int, ...]], samples: int, new_tokens: int, **extra) -> Callable[[], None]:
    """One call of bare vLLM: each prompt `samples` times, one SamplingParams for all."""
    import vllm

    params = vllm.SamplingParams(max_tokens=new_tokens, temperature=1.0, ignore_eos=True, detokenize=False, **extra)
    requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts for _ in range(samples)]

    def run() -> None:
        llm.reset_prefix_cache()
        outputs = llm.generate(requests, params, use_tqdm=False)
        assert sum(len(output.outputs[0].token_ids) for output in outputs) == len(requests) * new_tokens

    return run


def through_engine(engine: VLLMEngine, prompts: list, samples: int, new_tokens: int, seeded: bool) -> Callable[[], None]:
    """The same through our engine, log-probs and all."""
    requests = [
        Request(prompt, seed=100 * i + j if seeded else None) for i, prompt in enumerate(prompts) for j in range(samples)
    ]

    def run() -> None:
        engine._llm.reset_prefix_cache()
        completions = engine.generate(requests, SamplingParams(new_tokens, temperature=1.0))
        assert sum(len(c.token_ids) for c in completions) == len(requests) * new_tokens

    return run


def through_transformers(model: PreTrainedModel, prompts: list, samples: int, new_tokens: int) -> Callable[[], None]:
    """The same by transformers, one batch, prompts padded on the left. No log-probs."""
    longest = max(map(len, prompts))
    tokens, mask = (torch.zeros(len(prompts), longest, dtype=torch.int64) for _ in range(2))
    for row, prompt in enumerate(prompts):
        tokens[row, -len(prompt) :] = torch.tensor(prompt)
        mask[row, -len(prompt) :] = 1
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def run() -> None:
        with torch.inference_mode():
            made = model.generate(tokens, attention_mask=mask, num_return_sequences=samples, pad_token_id=0, **settings)
        assert made.shape == (len(prompts) * samples, longest + new_tokens)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(64, 192), help="shortest and longest")
    parser.add_argument("--samples", type=int, default=4, help="N")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    options = parser.parse_args()

    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(options.prompt_tokens[0], options.prompt_tokens[1] + 1, (options.prompts,), generator=generator)
    vocabulary = SHAPES[SHAPE].vocab_size
    prompts = [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in lengths.tolist()]
    sizes = (options.prompts * options.samples, options.prompt_tokens[1] + options.new_tokens, options.precision)
    work = (prompts, options.samples, options.new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder))
        if options.precision == "bf16":
            model = model.bfloat16()
        engine = our_engine(Path(folder), *sizes)
        bare = bare_vllm(Path(folder), *sizes)
        contenders = {
            "ours": through_engine(engine, *work, seeded=True),
            "ours, rollout.seed_per_sample=false": through_engine(engine, *work, seeded=False),
            "our vLLM called directly, with log-probs": through_vllm(engine._llm, *work, logprobs=0),
            "our vLLM called directly": through_vllm(engine._llm, *work),
            "bare vLLM, its defaults, with log-probs": through_vllm(bare, *work, logprobs=0),
            "bare vLLM, its defaults": through_vllm(bare, *work),
            "transformers.generate": through_transformers(model, *work),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(options.rounds + 1):
            for name, run in contenders.items():
                gc.collect()
                start = time.perf_counter()
                run()
                if turn:  # the first is for warming up
                    seconds[name].append(time.perf_counter() - start)
        engine.close()
    report(seconds, sizes[0] * options.new_tokens, vars(options) | {"threads": torch.get_num_threads()})


def report(seconds: dict[str, list[float]], tokens: int, options: dict) -> None:
    """Print the table and write the file."""
    rows = {}
    for name, mine in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(mine, seconds["ours"], strict=True)]
        rows[name] = {"tokens_per_second": tokens / statistics.median(mine), "ours_over_this": statistics.median(ratios)}
    print(f"{'':<44}{'new tokens/s':>14}{'ours/this':>12}")
    for name, row in rows.items():
        print(f"{name:<44}{row['tokens_per_second']:14.1f}{row['ours_over_this']:12.3f}")
    print(write_result("rollout", {"model": SHAPE, "options": options, "median": rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
