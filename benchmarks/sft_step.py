"""An SFT step against TRL's and a plain loop's: `python benchmarks/sft_step.py`, from the repository's root, on two cores.

Mixed lengths (log-normal, 32 to 512 tokens, the prompt not trained on), fp32, the same optimiser, two cores each; what counts
are real tokens a second, prompts included and padding not. --model small is the quickstart's Qwen2 (some four minutes), smollm2
a model of SmolLM2-135M's shape with random weights (some six). Each side's variants are timed once and its fastest take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from pathlib import Path

from common import write_result
from interleave import Program, as_json, shortlist, table, take_turns
from trl_env import trl_python

HERE = Path(__file__).parent
LONGEST = 512
COMMON = {"lr": 1e-4, "weight_decay": 0.01, "max_length": LONGEST}
BATCH = {"small": 32, "smollm2": 4}  # sequences a step


def write_model(name: str, folder: Path) -> int:
    """A model with random weights in hub format. Returns the size of its vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM

    from nemo_amft.config.schema import ModelConfig, ScratchConfig
    from nemo_amft.data.character_tokenizer import save_character_tokenizer
    from nemo_amft.models.hub_model import prepare_hub_model

    if name == "small":
        return prepare_hub_model(ModelConfig(scratch=ScratchConfig()), folder).config.vocab_size
    from shapes import SHAPES

    save_character_tokenizer(folder)  # SFTTrainer wants one; the data are tokens already
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(SHAPES["SmolLM2-135M"], dtype=torch.float32).save_pretrained(folder)
    return SHAPES["SmolLM2-135M"].vocab_size


def write_data(path: Path, vocabulary: int, count: int = 1024, seed: int = 1) -> list[int]:
    """Random tokens; a quarter of each sequence is prompt. Returns the lengths."""
    draw = random.Random(seed)
    lengths = []
    with path.open("w") as file:
        while len(lengths) < count:
            n = round(draw.lognormvariate(math.log(140), 0.6))
            if 32 <= n <= LONGEST:
                ids = [draw.randrange(4, vocabulary) for _ in range(n)]
                file.write(json.dumps({"input_ids": ids, "labels": [-100] * (n // 4) + ids[n // 4 :]}) + "\n")
                lengths.append(n)
    return lengths


def nemo_programs(name: str, settings: dict, everything: bool) -> list[Program]:
    """nemo_amft's variants: layout and size of micro-batches."""
    sizes = {
        "small": {"8 sequences": {"micro_batch_size": 8}, "2048 tokens": {"micro_batch_tokens": 2048}},
        "smollm2": {"2 sequences": {"micro_batch_size": 2}, "1024 tokens": {"micro_batch_tokens": 1024}},
    }[name]
    layouts = {"data parallel": (1, 2, 1)}
    if everything and name == "small":
        layouts["tensor parallel"] = (2, 2, 1)
    elif everything:
        layouts["1 x 2"] = (1, 1, 2)  # three key-value heads cannot be halved
    found = []
    for layout, (tensor, processes, threads) in layouts.items():
        for size, keys in sizes.items():
            own = settings | {"layout": {"tensor_model_parallel_size": tensor, **keys}}
            command = [sys.executable, str(HERE / "nemo_sft.py"), json.dumps(own)]
            found.append(Program(f"nemo_amft, {layout}, {size}", "nemo_amft", command, processes, threads))
    return found


def trl_ways(name: str, rows: int, everything: bool) -> dict[str, tuple[str, int, int, dict]]:
    """What TRL may do about padding: family, sequences a micro-batch, rows a step, options of SFTConfig.

    The first family trains on the same batches as nemo_amft. The second lets lengths decide which sequences meet in a step,
    which is another order of training. `rows`: packed rows with as many tokens as a step has.
    """
    same, other = "TRL, same batches", "TRL, batches by length"
    micro, batch = {"small": 8, "smollm2": 2}[name], BATCH[name]
    ways = {
        "padded": (same, micro, batch, {}),
        "grouped by length": (other, micro, batch, {"train_sampling_strategy": "group_by_length"}),
        "packed": (other, 1, rows, {"packing": True}),
    }
    if everything:
        ways["padded, larger micro-batches"] = (same, 2 * micro, batch, {})
        ways["padding-free"] = (same, micro, batch, {"padding_free": True})
        ways["packed, 2 rows"] = (other, 2, rows, {"packing": True})
        ways["packed, wrapped"] = (other, 1, rows, {"packing": True, "packing_strategy": "wrapped"})
    return ways


def trl_programs(name: str, settings: dict, mean_length: float, folder: Path, everything: bool) -> list[Program]:
    """TRL's variants, as one process of two threads and as two of one."""
    env = {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    packed = max(2, round(settings["batch"] * mean_length / LONGEST / 2) * 2)
    found = []
    for processes, threads in ((1, 2), (2, 1)):
        for way, (family, size, rows, options) in trl_ways(name, packed, everything).items():
            if name == "smollm2" and processes == 2 and not everything:
                continue  # a minute each, and two processes reduce 540 MB of gradients in every step
            size = min(size, rows // processes)
            own = settings | {
                "folder": str(folder / "trl"), "processes": processes, "threads": threads, "micro_batch": size,
                "accumulation": rows // processes // size, "options": options,
            }  # fmt: skip
            command = [trl_python(), str(HERE / "trl_sft.py"), json.dumps(own)]
            found.append(Program(f"TRL, {processes} x {threads}, {way}", family, command, processes, threads, env))
    return found


def compare(name: str, args: argparse.Namespace) -> dict:
    """All variants of all sides on one model and one list of sequences; prints the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lengths = write_data(folder / "data.jsonl", write_model(name, folder / "model"))
        settings = COMMON | {"model": str(folder / "model"), "data": str(folder / "data.jsonl"), "batch": BATCH[name]}
        plain = settings | {"threads": 2, "micro_batch": {"small": 8, "smollm2": 2}[name]}
        programs = [
            *nemo_programs(name, settings, args.all),
            *trl_programs(name, settings, sum(lengths) / len(lengths), folder, args.all),
            Program("plain loop, 1 x 2", "plain", [trl_python(), str(HERE / "trl_plain.py"), json.dumps(plain)], 1, 2),
        ]
        steps = args.steps or {"small": 2, "smollm2": 1}[name]
        found = shortlist(programs, folder, "tokens", steps)
        turns = take_turns(found, args.rounds, steps)
        for program in found:
            program.close()
    print(f"{name}: {BATCH[name]} sequences a step, {sum(lengths) / len(lengths):.0f} tokens on average")
    print(table(found, turns, "tokens", "tokens"))
    return {"settings": vars(args) | {"steps": steps}, **as_json(found, turns, "tokens")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["small", "smollm2"], default="small")
    parser.add_argument("--rounds", type=int, help="7 for small, 5 for smollm2")
    parser.add_argument("--steps", type=int, help="steps a turn")
    parser.add_argument("--all", action="store_true", help="also variants that have not been fastest")
    args = parser.parse_args()
    args.rounds = args.rounds or {"small": 7, "smollm2": 5}[args.model]
    print(write_result(f"sft_step_{args.model}", compare(args.model, args)))


if __name__ == "__main__":
    main()
