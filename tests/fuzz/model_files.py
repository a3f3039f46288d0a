"""Folders of models: config.json, generation_config.json, the index and headers of weights, and a tokenizer's files."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from nemo_amft.config.architecture import architecture_of
from nemo_amft.config.schema import ModelConfig
from nemo_amft.data.character_tokenizer import save_character_tokenizer
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.models.architecture import Architecture
from nemo_amft.models.hub_config import CONFIG_FILE, GENERATION_FILE, read_config, write_config
from nemo_amft.models.hub_files import ARCHITECTURES, INDEX_FILE, SINGLE_FILE
from nemo_amft.models.hub_model import prepare_hub_model
from nemo_amft.models.hub_names import hub_shapes
from nemo_amft.models.hub_tokenizer import read_tokenizer, write_tokenizer
from tests.fuzz.kinds import Kind, expect
from tests.fuzz.noise import VALUES, Files, Folder, folders, json_bytes

TEXT = "12+34=46"


@functools.cache
def _tokenizer_files() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        save_character_tokenizer(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@functools.cache
def _word_files() -> Files:
    """Whole words, which lose blanks or not by their decoder."""
    core = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "▁a": 2, "▁1": 3, "▁2": 4, "▁b": 5, "▁": 6}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "chat_template": "{{ 1 }}",
    }
    return {"tokenizer.json": core.to_str().encode(), "tokenizer_config.json": json_bytes(settings)}


@functools.cache
def _model_files(family: str, sharded: bool) -> Files:
    kinds = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
    config = kinds[family](
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=4,
        vocab_size=104, max_position_embeddings=64, architectures=[ARCHITECTURES[family]],
        tie_word_embeddings=family == "llama",
    )  # fmt: skip
    tensors = {name: torch.zeros(shape) for name, shape in hub_shapes(Architecture.from_hub(config)).items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config.save_pretrained(folder)
        if sharded:
            halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
            index = {}
            for i, half in enumerate(halves):
                save_file(half, folder / f"model-{i}.safetensors")
                index |= dict.fromkeys(half, f"model-{i}.safetensors")
            (folder / INDEX_FILE).write_bytes(json_bytes({"metadata": {}, "weight_map": index}))
        else:
            save_file(tensors, folder / SINGLE_FILE)
        (folder / GENERATION_FILE).write_bytes(json_bytes({"eos_token_id": [1, 2], "temperature": 0.6}))
        return {file.name: file.read_bytes() for file in folder.iterdir()} | _tokenizer_files()


FAMILIES = ("qwen2", "qwen3", "llama")
SOUND = {
    (family, sharded): functools.partial(_model_files, family, sharded) for family in FAMILIES for sharded in (False, True)
}
_models = st.sampled_from(sorted(SOUND)).flatmap(
    lambda name: folders(SOUND[name], (CONFIG_FILE, GENERATION_FILE, INDEX_FILE, SINGLE_FILE, "model-0.safetensors"))
)


@st.composite
def _overrides(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    family = draw(st.sampled_from(FAMILIES))
    fields = sorted(json.loads(_model_files(family, False)[CONFIG_FILE]))
    return family, draw(
        st.dictionaries(st.sampled_from([*fields, "rope_theta", "rope_scaling", "x"]), VALUES, min_size=1, max_size=3)
    )


def _check_model(given: Folder, overrides: dict[str, Any] | None = None) -> None:
    with given.written() as folder, tempfile.TemporaryDirectory(prefix="fuzz-") as out:
        model = ModelConfig(path=str(folder), config_overrides=overrides or {})
        planned = architecture_of(model)
        hub = prepare_hub_model(model, Path(out) / "model")
        found = Architecture.from_hub(hub.config)
        if planned is not None:
            sizes = ("hidden_size", "vocab_size", "head_dim")
            differs = [name for name in sizes if getattr(planned, name) != getattr(found, name)]
            differs += ["num_layers"] * (planned.num_hidden_layers != found.num_layers)
            expect(not differs, f"the plan is of another model: {differs}")
        expect(
            all(0 <= i < found.vocab_size for i in hub.end_token_ids) and hub.end_token_ids, f"ends with {hub.end_token_ids}"
        )
        export = Path(out) / "export"
        export.mkdir()
        write_config(hub.config, None, export)
        again = Architecture.from_hub(read_config(export, {}, False, True))
        expect(again == found, f"the exported config.json is of another model: {again}, expected {found}")


def _check_overrides(given: tuple[str, dict[str, Any]]) -> None:
    family, overrides = given
    _check_model(Folder(SOUND[family, False], ()), overrides)


_tokenizers = st.sampled_from((_tokenizer_files, _word_files)).flatmap(
    lambda files: folders(files, ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"))
)  # fmt: skip


def _check_tokenizer(given: Folder) -> None:
    with given.written() as folder, tempfile.TemporaryDirectory(prefix="fuzz-") as out:
        tokenizer, _ = read_tokenizer(folder, False)
        chat = ChatTemplate(tokenizer, 16)
        expect(chat.prompt_ids([{"role": "user", "content": TEXT}]), "a prompt without a token")
        ids = chat.encode(TEXT)
        expect(all(isinstance(i, int) and 0 <= i < len(tokenizer) for i in ids), f"ids {ids} of {len(tokenizer)}")
        write_tokenizer(tokenizer, folder, Path(out))
        again, _ = read_tokenizer(Path(out), False)
        expect(ChatTemplate(again).encode(TEXT) == ids, "the exported tokenizer reads text otherwise")


# ---- chat templates

_pieces = st.sampled_from(("{% for message in messages %}", "{% endfor %}", "{{ message['content'] }}", "{{ message.role }}",
    "{{ bos_token }}", "{% if ", "{% endif %}", "{{ eos_token }}", "<think>\n", "</think>", "{%- set ns = namespace(x=0) -%}",
    "{{ strftime_now('%Y') }}", "{{ 1 / 0 }}", "{{ messages[5]['content'] }}", "{{ messages | tojson }}",
    "{{ raise_exception('no') }}", "{{ enable_thinking }}", "{% generation %}", "{% endgeneration %}", "{{ tools }}",
    "add_generation_prompt %}", "{{ messages[0]['content'].split('=')[3] }}", "{{ 'a' * 3 }}", "{{ undefined.x }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ range(10**9) | length }}", "{{ messages.append(1) }}",
    "{{ strftime_now(5) }}", "{{ [] | first }}", "{{ 'x' | int('a') }}", "{{ messages | map(attribute='content') | join }}",
    "\n", "a", "{{", "}}", "{# c #}", "{{ messages[0].content | replace(1, 2) }}", "{% include 'x' %}",
    "{{ ''.__class__.__mro__ }}", "{{ '%d' % 'a' }}", "{{ 10 ** 5000 }}", "{{ x }}", "{{ (1).x }}",
    "{{ messages[-1]['content'] | length % 0 }}", "{{ '\\ud800' }}", "{{ none + 1 }}", "{{ messages | batch(0) | list }}",
    "{{ 'abc'.encode('x') }}", "{{ 'a'.index('b') }}", "{{ '{0.x}'.format(1) }}", "{{ {}.pop('a') }}",
    "{{ cycler().next() }}", "{{ 'a' | indent('b') }}", "{{ messages | sort }}", "{{ [1] | sum(attribute='x') }}"))  # fmt: skip
_plain = st.lists(
    st.sampled_from(
        ("{{ bos_token }}", "{{ eos_token }}", "a", "\n", "<think>\n", "{# c #}", "{{ enable_thinking }}", "{{ x }}")
    ),
    max_size=3,
).map("".join)
_templates = st.tuples(
    st.tuples(_plain, _plain, _plain).map(
        lambda parts: parts[0] + "{% for message in messages %}{{ message['content'] }}" + parts[1] + "{% endfor %}" + parts[2]
    ) | st.lists(_pieces, max_size=6).map("".join) | st.lists(_pieces, max_size=3).map(
        lambda parts: "{% for message in messages %}{{ message['content'] }}" + "".join(parts).replace("{% endfor %}",
        "") + "{% endfor %}"
    ),
    st.dictionaries(st.sampled_from(("enable_thinking", "x", "messages", "a b", "")), VALUES, max_size=2),
)  # fmt: skip


@functools.cache
def _plain_model() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name, content in _model_files("qwen2", False).items():
        (folder / name).write_bytes(content)
    return folder


def _check_template(given: tuple[str, dict[str, Any]]) -> None:
    template, variables = given
    with tempfile.TemporaryDirectory(prefix="fuzz-") as out:
        file = Path(out) / "template.jinja"
        file.write_text(template, encoding="utf-8", errors="surrogatepass")
        model = ModelConfig(path=str(_plain_model()), chat_template=str(file), chat_template_kwargs=variables)
        chat = ChatTemplate(prepare_hub_model(model, Path(out) / "model").tokenizer, 16)
        asked = [{"role": "user", "content": TEXT}]
        expect(chat.prompt_ids(asked), "a prompt without a token")
        expect(chat.prompt_text(asked), "a prompt without a text")
        chat.turns(("46", "and then?", "47"))


KINDS = (
    Kind("models' folders", _models, _check_model),
    Kind("overrides of models", _overrides(), _check_overrides),
    Kind("tokenizers' files", _tokenizers, _check_tokenizer),
    Kind("chat templates", _templates, _check_template),
)
