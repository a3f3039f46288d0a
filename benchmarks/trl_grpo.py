"""TRL's side of grpo_step.py: GRPOTrainer with transformers' generation, a turn at a time. Runs in TRL's own environment.

Started by grpo_step.py, as one process a rank; its argument is a JSON object of settings.
"""

from __future__ import annotations

import json
import sys

from interleave import Channel


def digits(completions: list, **_unused: object) -> list[float]:
    """The reward: the share of digits in a response."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in texts]


def main() -> None:
    channel = Channel()
    settings = json.loads(sys.argv[1])
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl_turns import Turns, common_arguments

    samples = settings["prompts"] * settings["samples"]
    config = GRPOConfig(
        **common_arguments(settings),
        per_device_train_batch_size=samples // settings["processes"] // settings["accumulation"],
        gradient_accumulation_steps=settings["accumulation"],
        num_generations=settings["samples"],
        max_completion_length=settings["new_tokens"],
        # Nothing ends a response but the limit.
        generation_kwargs={"min_new_tokens": settings["new_tokens"]} if settings["fixed"] else None,
        temperature=1.0,
        beta=0.0,
        shuffle_dataset=False,
    )
    turns = Turns(channel)
    trainer = GRPOTrainer(
        model=settings["model"],
        reward_funcs=digits,
        args=config,
        train_dataset=load_dataset("json", data_files=settings["data"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[turns],
    )
    turns.watch(trainer, "_generate_single_turn", "generation")
    turns.watch(trainer, "_calculate_rewards", "reward")
    for name in ("compute_loss", "accelerator.backward", "accelerator.clip_grad_norm_", "optimizer.step"):
        turns.watch(trainer, name, "training")

    def count() -> dict[str, float]:
        lengths = {name: trainer._metrics["train"][f"completions/{name}_length"][-1] for name in ("min", "mean")}
        assert not settings["fixed"] or lengths["min"] == settings["new_tokens"], lengths
        mine = samples / settings["processes"]
        return {"samples": mine, "tokens": mine * lengths["mean"], "steps": 1 / settings["processes"]}

    turns.count(count)
    trainer.train()


if __name__ == "__main__":
    main()
