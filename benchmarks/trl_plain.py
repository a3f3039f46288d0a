"""A plain loop over transformers' model for sft_step.py: what one writes without any trainer. Runs in TRL's environment.

Padded micro-batches in the order of the data, cross entropy of all logits by torch, fused AdamW.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

from interleave import Channel


def main() -> None:
    channel = Channel()
    settings = json.loads(sys.argv[1])
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).train()
    kinds = [[p for p in model.parameters() if (p.dim() > 1) == decays] for decays in (True, False)]
    groups = [{"params": kinds[0], "weight_decay": settings["weight_decay"]}, {"params": kinds[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.95), fused=True)
    rows = [json.loads(line) for line in Path(settings["data"]).read_text().splitlines()]
    size, micro = settings["batch"], settings["micro_batch"]
    batches = itertools.cycle(rows[i : i + size] for i in range(0, len(rows), size))
    spent = {"gradient": 0.0, "optimizer": 0.0}

    def padded(rows: list[dict], name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(r[name]) for r in rows], batch_first=True, padding_value=value)

    def step() -> dict[str, float]:
        batch = next(batches)
        started = time.perf_counter()
        total = sum(label != -100 for row in batch for label in row["labels"])
        for i in range(0, len(batch), micro):
            part = batch[i : i + micro]
            ids, labels = padded(part, "input_ids", 0), padded(part, "labels", -100)
            mask = padded([{"ones": [1] * len(row["input_ids"])} for row in part], "ones", 0)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            (cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / total).backward()
        spent["gradient"] += time.perf_counter() - started
        started = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        spent["optimizer"] += time.perf_counter() - started
        return {"tokens": sum(len(row["input_ids"]) for row in batch), "steps": 1}

    def phases() -> dict[str, float]:
        found = dict(spent)
        spent.update(dict.fromkeys(spent, 0.0))
        return found

    channel.serve(step, phases)


if __name__ == "__main__":
    main()
