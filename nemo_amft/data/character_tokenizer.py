"""A tokenizer with one token a character, in the hub's format, for models trained from random weights."""

from __future__ import annotations

import string
from pathlib import Path

PAD, EOS, BOS, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"
SPECIAL_TOKENS = (PAD, EOS, BOS, UNKNOWN)
"""Ids 0 to 3."""

CHARACTERS = string.printable
"""ASCII's 100 printable characters, whitespace included, from id 4 on. Other characters read as <unk>, or are left out."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif not loop.last and messages[loop.index]['role'] != 'assistant' %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""<bos>, then the contents, with a line break between messages that no response separates: prompts stay short, and a
problem's own "=" says where to answer."""


def vocab_size() -> int:
    """104: 4 special tokens and 100 characters. Embeddings may be padded beyond it (tensor parallelism, divisibility)."""
    return len(SPECIAL_TOKENS) + len(CHARACTERS)


def save_character_tokenizer(folder: str | Path) -> None:
    """Write tokenizer.json and its companions to `folder`, made if needed, for AutoTokenizer and vLLM to load."""
    # Imported here: transformers takes seconds, and the vocabulary's size is asked for without it.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-pair encoding without merges is one token a character. Beside a Qwen2 model's config.json, AutoTokenizer rebuilds the
    # tokenizer as Qwen2's, which spells bytes GPT-2's way (a space as U+0120), so the vocabulary spells them that way as well.
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = [bytes_of.pre_tokenize_str(character)[0][0] for character in CHARACTERS]
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *spelt))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    core.pre_tokenizer = bytes_of
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
