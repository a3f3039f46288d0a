"""tokenizer.json says how text is split, whatever class a config names; what an export carries of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from nemo_amft.models.hub_tokenizer import read_tokenizer, write_tokenizer
from nemo_amft.types import UserError

TEXT = "  12 + 345 =\n\n\tfor naïve 東京?"


def byte_level(folder: Path, config, tokenizer_class: str, merge_digits: bool = False, **settings) -> Tokenizer:
    """Write a byte-level tokenizer.json, one token a byte or a pair of ones, beside a model's config and a class's name."""
    config.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "11"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "1")] if merge_digits else []))
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+|[^\s\p{N}]+"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    core.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": tokenizer_class, "eos_token": "<end>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return core


@pytest.mark.parametrize(
    ("config", "tokenizer_class"),
    [
        (LlamaConfig(), "LlamaTokenizerFast"),
        (LlamaConfig(), "LlamaTokenizer"),
        (LlamaConfig(), "PreTrainedTokenizerFast"),
        (Qwen2Config(), "LlamaTokenizerFast"),
        (Qwen3Config(), "LlamaTokenizerFast"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_a_class_that_reads_text_otherwise_gives_way_to_the_file(config, tokenizer_class, tmp_path):
    core = byte_level(tmp_path, config, tokenizer_class)
    tokenizer, note = read_tokenizer(tmp_path, False)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert ids == core.encode(TEXT).ids
    assert len(ids) == len(TEXT.encode())
    assert tokenizer.decode(ids) == TEXT
    assert (note is None) == (tokenizer_class == "PreTrainedTokenizerFast")
    if note is not None:
        assert str(tmp_path / "tokenizer.json") in note


def test_a_class_that_only_splits_digits_otherwise_gives_way_too(tmp_path):
    """Qwen's rule takes digits one by one, this file three at a time."""
    byte_level(tmp_path, Qwen2Config(), "Qwen2Tokenizer", merge_digits=True)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs("11")["input_ids"]) == 2
    tokenizer, _ = read_tokenizer(tmp_path, False)
    assert len(tokenizer("11")["input_ids"]) == 1


def test_a_tokenizer_that_loses_blanks_is_refused(tmp_path):
    """As a model of the Llama family without tokenizer.json: transformers then makes one of three tokens."""
    byte_level(tmp_path, LlamaConfig(), "LlamaTokenizer")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="blanks") as error:
        read_tokenizer(tmp_path, False)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_no_export_could_hold_are_refused_before_a_run(tmp_path):
    byte_level(tmp_path, LlamaConfig(), "PreTrainedTokenizerFast", note="cut \ud800")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: found half of a surrogate pair"):
        read_tokenizer(tmp_path, False)


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizerFast", "TokenizersBackend"])
def test_an_export_reads_text_alike_and_names_a_class_of_both_versions(tokenizer_class, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    byte_level(source, LlamaConfig(), tokenizer_class, extra_special_tokens=["<one>", "<two>"], model_max_length=77)
    tokenizer, _ = read_tokenizer(source, False)
    LlamaConfig().save_pretrained(out)
    write_tokenizer(tokenizer, source, out)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (settings["additional_special_tokens"], settings["model_max_length"]) == (["<one>", "<two>"], 77)
    assert "extra_special_tokens" not in settings, "as a list transformers 4 cannot read it"
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    again = AutoTokenizer.from_pretrained(out)
    assert again.decode(again(TEXT)["input_ids"]) == TEXT
    assert again.eos_token == "<end>"


def test_an_export_outlives_its_source_and_has_the_template_in_use(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    byte_level(source, LlamaConfig(), "PreTrainedTokenizerFast", chat_template="old")
    tokenizer, _ = read_tokenizer(source, False)
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    for gone in (False, True):
        if gone:
            shutil.rmtree(source)
        write_tokenizer(tokenizer, source, out)
        again = PreTrainedTokenizerFast.from_pretrained(out)
        assert again.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
        assert json.loads((out / "tokenizer_config.json").read_text()).get("chat_template", "") != "old"
        shutil.rmtree(out)
