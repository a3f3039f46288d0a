"""A tiny model that sees, from random weights: SmolVLM's architecture with the project's character tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
IMAGE_SIZE = 64
"""Pixels of a side that the model sees; larger images are scaled down."""


def save_seeing_model(folder: Path) -> Path:
    """Weights, tokenizer, chat template and image processor, in hub format."""
    from transformers import AutoTokenizer, Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    from nemo_amft.data.character_tokenizer import CHARACTERS, SPECIAL_TOKENS, save_character_tokenizer

    save_character_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                "<image>",
                "<fake_token_around_image>",
                "<global-img>",
                "<end_of_utterance>",
            ]
        }
    )
    tokenizer.chat_template = TEMPLATE
    text = LlamaConfig(
        hidden_size=64,  # two heads of 32, the smallest that vLLM has on a CPU
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        initializer_range=0.3,  # sharp enough for an image to show in what comes out
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": IMAGE_SIZE, "patch_size": 16, "initializer_range": 0.3,
    }  # fmt: skip
    config = Idefics3Config(
        vision_config=vision,
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Idefics3ForConditionalGeneration(config)
        with torch.no_grad():  # it is not to write <image> and the like, which would ask for images
            model.lm_head.weight[len(CHARACTERS) + len(SPECIAL_TOKENS) :] = 0.0
        model.save_pretrained(folder)
    side = {"longest_edge": IMAGE_SIZE}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def log_probs_by_transformers(folder: Path, prompt: str, images: list, response: list[int]) -> list[float]:
    """Log-probs of `response` after `prompt`, text with "<image>" for each of the images, by the reference implementation."""
    from transformers import AutoTokenizer, Idefics3ForConditionalGeneration
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    processor = Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), image_seq_len=4
    )
    inputs = processor(text=prompt, images=images, add_special_tokens=False, return_tensors="pt")
    ahead = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([response])], dim=1)
    model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    seen = {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask") if name in inputs}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **seen).logits
    values = logits[0, ahead - 1 : -1].log_softmax(-1)
    return values[range(len(response)), response].tolist()
