"""A GRPO step against TRL's: `python benchmarks/grpo_step.py`, from the repository's root, some four minutes on two cores.

The same small Qwen2 from the same file, the same prompts and samples a prompt, the same optimiser, fp32, two cores each.
nemo_amft runs as two processes; TRL generates with transformers and runs as it likes best, one process of two threads or two of
one. Each side's variants are timed once and its fastest take turns.

--lengths fixed: every response has exactly --new-tokens tokens, so that there is no padding to save. mixed: the model's own end
token ends responses, each token being it with a probability of about 1/104 under random weights; both sides draw from the same
distribution, and what counts is response tokens a second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import write_result
from interleave import Program, as_json, shortlist, table, take_turns
from trl_env import trl_python

from nemo_amft.config.schema import ModelConfig, ScratchConfig
from nemo_amft.data.streams import ExampleStream
from nemo_amft.models.hub_model import prepare_hub_model

HERE = Path(__file__).parent
# A rate at which the policy stays what it is: the lengths of its responses then do so, too.
LR, WEIGHT_DECAY, STEPS = 1e-6, 0.01, 100_000
LAYOUTS = {  # tensor parallel size, rollout engine, whether it takes part by default
    "tensor parallel, vllm": (2, "vllm", True),
    "data parallel, vllm": (1, "vllm", True),
    "tensor parallel, megatron": (2, "megatron", False),
    "data parallel, megatron": (1, "megatron", True),
}


def overrides(args: argparse.Namespace, model: Path, run_dir: Path, tensor: int, engine: str) -> list[str]:
    """nemo_amft's configuration."""
    return [
        "--config-name", "quickstart", "method=grpo", f"++task._target_={HERE / 'nemo_grpo.py'}:DigitsTask",
        f"rollout={engine}", f"rollout.max_new_tokens={args.new_tokens}", "rollout.max_num_seqs=1024",
        f"model.path={model}", f"model.tensor_model_parallel_size={tensor}", f"model.micro_batch_size={args.micro_batch_size}",
        f"data.prompts_per_step={args.prompts}", f"data.samples_per_prompt={args.samples}", "data.demonstrations_per_step=1",
        f"optim.lr={LR}", f"optim.weight_decay={WEIGHT_DECAY}", "optim.lr_warmup_ratio=0", f"trainer.max_steps={STEPS}",
        "trainer.save_rollouts=0", "trainer.devices=2", f"exp_manager.explicit_log_dir={run_dir}",
    ]  # fmt: skip


def programs(args: argparse.Namespace, folder: Path) -> list[Program]:
    """All variants of both sides, over one model and one list of prompts."""
    scratch = ScratchConfig(max_position_embeddings=max(128, args.new_tokens + 16))
    model = prepare_hub_model(ModelConfig(scratch=scratch), folder / "model").path
    data = folder / "prompts.jsonl"
    ours = []
    for name, (tensor, engine, usual) in LAYOUTS.items():
        if usual or args.all:
            settings = [
                args.lengths,
                *overrides(args, model, folder / name.replace(", ", "-").replace(" ", "-"), tensor, engine),
            ]
            ours.append(Program(f"nemo_amft, {name}", "nemo_amft", [sys.executable, str(HERE / "nemo_grpo.py"), *settings], 2))
    _write_prompts(list(ours[0].command[3:]), data)
    theirs = []
    for processes, threads in ((1, 2), (2, 1)):
        for accumulation in (1, 2) if args.all else (1,):
            settings = {
                "model": str(model), "data": str(data), "folder": str(folder / "trl"), "processes": processes,
                "threads": threads, "accumulation": accumulation, "prompts": args.prompts, "samples": args.samples,
                "new_tokens": args.new_tokens, "fixed": args.lengths == "fixed", "lr": LR, "weight_decay": WEIGHT_DECAY,
            }  # fmt: skip
            name = f"TRL, {processes} x {threads}" + (f", {accumulation} micro-batches" if accumulation > 1 else "")
            command = [trl_python(), str(HERE / "trl_grpo.py"), json.dumps(settings)]
            env = {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
            theirs.append(Program(name, "TRL", command, processes, threads, env))
    return ours + theirs


def _write_prompts(settings: list[str], path: Path) -> None:
    """The prompts in the order nemo_amft takes them."""
    from nemo_amft.config.load import load

    config = load(settings, check=False)
    task = config.task.build(config.data, config.trainer.seed)
    examples = task.examples("train")
    taken = ExampleStream(examples, config.trainer.seed, "prompts").take(len(examples))
    path.write_text("".join(json.dumps({"prompt": [dict(m) for m in e.messages]}) + "\n" for e in taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--lengths", choices=["fixed", "mixed"], default="fixed")
    parser.add_argument("--new-tokens", type=int, help="longest response; 64 for fixed lengths, 128 for mixed")
    parser.add_argument("--micro-batch-size", type=int, default=64, help="nemo_amft's")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--all", action="store_true", help="also variants that have not been fastest")
    args = parser.parse_args()
    args.new_tokens = args.new_tokens or {"fixed": 64, "mixed": 128}[args.lengths]
    unit = {"fixed": "samples", "mixed": "tokens"}[args.lengths]
    with tempfile.TemporaryDirectory() as folder:
        found = shortlist(programs(args, Path(folder)), Path(folder), unit, args.steps)
        turns = take_turns(found, args.rounds, args.steps)
        for program in found:
            program.close()
    print(table(found, turns, unit, "samples"))
    print(write_result(f"grpo_step_{args.lengths}", {"settings": vars(args), **as_json(found, turns, unit)}))


if __name__ == "__main__":
    main()
