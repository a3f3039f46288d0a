"""TRL's side of sft_step.py: SFTTrainer, a turn at a time. Runs in TRL's own environment.

Started by sft_step.py, as one process a rank; its argument is a JSON object of settings.
"""

from __future__ import annotations

import json
import sys

from interleave import Channel


def main() -> None:
    channel = Channel()
    settings = json.loads(sys.argv[1])
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl_turns import Turns, common_arguments

    config = SFTConfig(
        **common_arguments(settings),
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["accumulation"],
        max_length=settings["max_length"],
        **settings["options"],
    )
    turns = Turns(channel)
    tokens = 0

    class Counting(SFTTrainer):
        """Counts the real tokens of what it trains on."""

        def compute_loss(self, model, inputs, *args, **kwargs):
            nonlocal tokens
            mask = inputs.get("attention_mask")
            tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Counting(
        model=settings["model"],
        args=config,
        train_dataset=load_dataset("json", data_files=settings["data"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[turns],
    )
    for name in ("compute_loss", "accelerator.backward"):
        turns.watch(trainer, name, "gradient")
    for name in ("accelerator.clip_grad_norm_", "optimizer.step"):
        turns.watch(trainer, name, "optimizer")

    def count() -> dict[str, float]:
        nonlocal tokens
        done, tokens = tokens, 0
        return {"tokens": done, "steps": 1 / settings["processes"]}

    turns.count(count)
    trainer.train()


if __name__ == "__main__":
    main()
