"""Tokenizer files of a hub folder: read so that tokenizer.json is what counts, and written for transformers 4 as well as 5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nemo_amft.config.hub_json import read_object, refuse_half_pairs
from nemo_amft.types import UserError

TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"

CARRIED = (
    TOKENIZER_FILE, SETTINGS_FILE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "*.tiktoken", "tekken.json", "tokenization_*.py",
)  # fmt: skip
"""What an export has from the folder that the tokenizer was read from."""

PROBES = (
    "  Find x:  12345 + 0.5 = 67\n\n\tit's x² - don't\r\n$\\frac{1}{2}$ ",
    "naïve Räume, 東京 3時 🙂 ﬁ e\u0301",
)
"""Blanks, line breaks, digits, contractions, and characters beyond ASCII: what pre-tokenizers and normalisers differ in."""


def read_tokenizer(folder: Path, trust_remote_code: bool) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer in `folder`, and what is to be said about it.

    tokenizer.json says how text is split. Since transformers 5 some classes rebuild it by rules of their own instead, chosen by
    model_type: then a model of one family with the tokenizer of another is shown text without blanks, or other tokens than it
    was trained on. So what the class makes of `PROBES` is compared with the file, which is used in its place where they differ.

    Raises:
        UserError: no tokenizer, a broken file, or one that loses the blanks of a text.
    """
    for file in (*folder.glob("tokenizer*.json"), *folder.glob("special_tokens_map.json"), *folder.glob("added_tokens.json")):
        values = read_object(file)
        if file.name != TOKENIZER_FILE:  # which is another library's to read, and large
            refuse_half_pairs(values, file)
    note = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        core = _core(folder)
        own = type(tokenizer).__module__.startswith("transformers.")  # code that comes with the model is trusted in this, too
        if core is not None and own and (text := difference(tokenizer, core)) is not None:
            note = (
                f"{folder / TOKENIZER_FILE}: transformers' {type(tokenizer).__name__} reads {text!r} otherwise than this file; "
                "the file is used"
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # of transformers, tokenizers, sentencepiece: each has classes of its own
        raise UserError(f"{folder}: no tokenizer to be read ({' '.join(str(error).split())[:300]})") from error
    if note is not None and (text := difference(tokenizer, core)) is not None:
        raise UserError(f"{folder / TOKENIZER_FILE}: transformers reads {text!r} otherwise than this file, whatever the class")
    _refuse_without_blanks(tokenizer, folder)
    return tokenizer, note


def difference(tokenizer: PreTrainedTokenizerBase, core: Tokenizer | PreTrainedTokenizerBase) -> str | None:
    """A text that the two take for different tokens, or write differently; None where they agree."""
    for text in _probes(core):
        ids, wanted = _encode(tokenizer, text), _encode(core, text)
        if ids != wanted or _decode(tokenizer, ids) != _decode(core, ids):
            return text
    return None


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """The `tokenizers` library's tokenizer behind one of transformers; None of one that is written in Python."""
    return tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None


def _core(folder: Path) -> Tokenizer | None:
    """tokenizer.json as the tokenizers library reads it, with nothing else applied."""
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        return None
    core = Tokenizer.from_file(str(file))
    core.no_truncation()
    core.no_padding()
    return core


def _probes(core: Tokenizer | PreTrainedTokenizerBase) -> list[str]:
    """`PROBES`, by themselves and behind a special token, where a chat template puts text."""
    added = core.get_added_tokens_decoder() if isinstance(core, Tokenizer) else core.added_tokens_decoder
    special = [token.content for token in added.values() if token.special][:1]
    return [*PROBES, *(f"{token}{text}{token}" for token in special for text in PROBES)]


def _encode(tokenizer: Tokenizer | PreTrainedTokenizerBase, text: str) -> list[int]:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode(text, add_special_tokens=False).ids
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(tokenizer: Tokenizer | PreTrainedTokenizerBase, ids: list[int]) -> str:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.decode(ids, skip_special_tokens=False)
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _refuse_without_blanks(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Without tokenizer.json there is nothing to compare with, but a vocabulary for another class shows in this."""
    text = "1 2 a b"
    back = _decode(tokenizer, _encode(tokenizer, text))
    if back.strip().count(" ") < text.count(" "):
        raise UserError(
            f"{folder}: the tokenizer ({type(tokenizer).__name__}) reads {text!r} back as {back!r}, expected its blanks kept; "
            f"found no {TOKENIZER_FILE}, or one that loses them"
        )


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Path | None, folder: Path) -> None:
    """Write the tokenizer that was read from `source`, if from a folder, to `folder`: its own files, as far as they are still
    there.

    What transformers 5 writes is unknown to 4 in two places: the class name TokenizersBackend, and further special tokens as a
    list under another key. A chat template that was exchanged is written in its place.
    """
    tokenizer.save_pretrained(folder)
    for pattern in CARRIED if source is not None else ():
        for file in filter(Path.is_file, source.glob(pattern)):
            shutil.copyfile(file, folder / file.name)
    settings = read_object(folder / SETTINGS_FILE)
    if type(tokenizer) is PreTrainedTokenizerFast:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name in both; in 5 another name of TokenizersBackend
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if "chat_template" in settings and isinstance(tokenizer.chat_template, str):
        settings["chat_template"] = tokenizer.chat_template
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
