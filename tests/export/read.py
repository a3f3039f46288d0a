"""Run by the Python of another environment: what its transformers makes of exported folders, as JSON. Imports none of ours."""

from __future__ import annotations

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def read(folder: str, text: str) -> dict:
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    messages = [{"role": "user", "content": text}]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits.float()
    return {
        "dtype": str(model.dtype),
        "logits": logits[0].tolist(),
        "ids": ids,
        "text": tokenizer.decode(ids),
        "prompt": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        "end": [tokenizer.eos_token_id, model.generation_config.eos_token_id],
        "special": sorted(tokenizer.all_special_tokens),
    }


if __name__ == "__main__":
    found = {folder: read(folder, sys.argv[1]) for folder in sys.argv[2:]}
    print(json.dumps({"version": transformers.__version__, "found": found}))
