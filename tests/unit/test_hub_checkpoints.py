"""What people's checkpoints hold: read as transformers reads it, or refused in one line that says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_amft.algorithms.build import check_stops
from nemo_amft.config.architecture import architecture_of
from nemo_amft.config.schema import ModelConfig, RolloutConfig, ScratchConfig
from nemo_amft.models.architecture import Architecture
from nemo_amft.models.hub_model import HubModel, prepare_critic, prepare_hub_model
from nemo_amft.models.hub_names import EMBEDDING, HEAD
from nemo_amft.types import UserError

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FREQUENCIES = "model.rotary_emb.inv_freq"
WEIGHTS, INDEX, NORM, GATE = "model.safetensors", "model.safetensors.index.json", "model.norm.weight", "mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[bool, Path]:
    """A folder without and one with tied embeddings."""
    root = tmp_path_factory.mktemp("made")
    scratch = {tied: ScratchConfig(family="llama", tie_word_embeddings=tied, **SIZES) for tied in (False, True)}
    return {tied: prepare_hub_model(ModelConfig(scratch=s), root / str(tied)).path for tied, s in scratch.items()}


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made[False], tmp_path / "model")


def prepared(folder: Path, **keys) -> HubModel:
    return prepare_hub_model(ModelConfig(path=str(folder), **keys), folder.parent / "base_model")


def values(name: str = "config.json", without: tuple[str, ...] = (), **changes):
    """An edit of a JSON file."""

    def edit(folder: Path) -> None:
        file = folder / name
        old = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in old.items() if key not in without} | changes))

    return edit


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def tensors(change):
    """An edit of the weights: `change` of the tensors by name."""

    def edit(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def sharded(placed: dict[str, str] | None = None, keep_single: bool = False, lose: str | None = None):
    """Two files and an index, which says of the tensors `placed` that they are in another file than they are."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        names = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
        for file, own in names.items():
            save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt"})
        index = {name: file for file, own in names.items() for name in own} | (placed or {})
        (folder / INDEX).write_text(json.dumps({"weight_map": {name: file for name, file in index.items() if name != lose}}))
        if not keep_single:
            (folder / WEIGHTS).unlink()

    return edit


def as_type(dtype: torch.dtype):
    return tensors(lambda w: {name: t.to(dtype) if name.endswith(GATE) else t for name, t in w.items()})


def body(w: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As LlamaModel is saved: without a head, and without `model.` in front."""
    return {name.removeprefix("model."): tensor for name, tensor in w.items() if name != HEAD}


OLD_KEYS = {"without": ("rope_parameters", "rope_theta", "rope_scaling")}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

REFUSED = {
    # quantised, each as what it is
    "fp8": (values(quantization_config={"quant_method": "fp8"}), ("config.json", "quantization_config: found fp8")),
    "modelopt": (values(quantization_config={"quant_algo": "NVFP4"}), ("NVFP4",)),
    "old bitsandbytes": (values(quantization_config={"load_in_8bit": True}), ("found bitsandbytes",)),
    "old compressed-tensors": (values(compression_config={"format": "int-quantized"}), ("int-quantized",)),
    "int8 tensors": (as_type(torch.int8), (WEIGHTS, GATE, "I8", "quantised")),
    "fp8 tensors": (as_type(torch.float8_e4m3fn), (WEIGHTS, GATE, "F8_E4M3", "quantised")),
    "scales": (tensors(lambda w: w | {f"model.layers.0.{GATE}_scale_inv": torch.ones(1)}), ("_scale_inv", "quantised")),
    "packed": (tensors(lambda w: w | {"model.layers.0.mlp.gate_proj.qweight": torch.ones(1)}), ("qweight", "quantised")),
    # config.json
    "a whole number written as a fraction": (values(max_position_embeddings=512.0), ("max_position_embeddings: found 512.0",)),
    "a number written as text": (values(num_hidden_layers="2"), ("num_hidden_layers: found '2'",)),
    "no number": (values(hidden_size=None), ("hidden_size: found None",)),
    "a size left out": (values(without=("num_attention_heads",)), ("config.json: num_attention_heads: found nothing",)),
    "another type": (values(rms_norm_eps="1e-6"), ("config.json", "rms_norm_eps", "float", "str")),
    "an unknown dtype": (values(dtype="float5"), ("config.json", "float5")),
    "heads": (values(num_key_value_heads=3), ("num_attention_heads=4", "num_key_value_heads=3")),
    "layers": (values(per_layer_config={"0": {"intermediate_size": 16}}), ("per_layer_config",)),
    "broken": (text("config.json", '{"model_type": '), ("config.json", "JSON")),
    "no object": (text("config.json", "[]"), ("config.json", "list")),
    # rotary positions
    "two thetas": (values(rope_theta=5e5), ("config.json: rope_theta: found 500000.0 and 10000.0",)),
    "a theta in the scaling": (
        values(**OLD_KEYS, rope_theta=5e5, rope_scaling={"type": "llama3", "rope_theta": 1e4, **LLAMA3}),
        ("config.json: rope_theta: found 500000.0 and 10000.0",),
    ),
    "two scalings": (values(rope_scaling={"type": "linear", "factor": 2.0}), ("rope_scaling", "linear", "default")),
    "yarn": (values(**OLD_KEYS, rope_theta=1e4, rope_scaling={"type": "yarn", "factor": 4.0}), ("yarn",)),
    "a factor alone": (values(**OLD_KEYS, rope_theta=1e4, rope_scaling={"factor": 4.0}), ("factor=4.0", "rope_type")),
    "half of llama3": (values(**OLD_KEYS, rope_scaling={"type": "llama3", "factor": 4.0}), ("config.json", "low_freq_factor")),
    "theta as a list": (values(**OLD_KEYS, rope_theta=[1e4]), ("rope_theta=[10000.0]",)),
    "theta as a list beside another": (values(rope_theta=[]), ("config.json: rope_theta: found [] and 10000.0",)),
    "theta as text": (values(**OLD_KEYS, rope_theta="1e4"), ("rope_theta='1e4'",)),
    "part of a head": (values(partial_rotary_factor=0.5), ("partial_rotary_factor=0.5",)),
    # weights
    "index and single file": (sharded(keep_single=True), (INDEX, "a.safetensors", WEIGHTS)),
    "a file that is not there": (sharded({NORM: "c.safetensors"}), (INDEX, "names c.safetensors")),
    "a tensor elsewhere": (sharded({EMBEDDING: "a.safetensors", HEAD: "b.safetensors"}), ("a.safetensors", "index")),
    "a tensor beside the index": (sharded(lose=NORM), ("safetensors: has a tensor", NORM, INDEX)),
    "no index": (lambda folder: (sharded()(folder), text(INDEX, "{}")(folder)), (INDEX, "weight_map")),
    "no head": (tensors(lambda w: {n: t for n, t in w.items() if n != HEAD}), (WEIGHTS, "no tensor", HEAD)),
    "a body": (tensors(body), ("no tensor", HEAD)),
    "a wrapper's names": (tensors(lambda w: {f"_orig_mod.{n}": t for n, t in w.items()}), ("no tensor", "20 more")),
    "a Git LFS pointer": (text(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), (WEIGHTS, "Git LFS pointer")),
    "GGUF alone": (lambda folder: (folder / WEIGHTS).rename(folder / "x.gguf"), ("GGUF (x.gguf)", "nemo_amft.convert gguf")),
    "an adapter": (text("adapter_config.json", "{}"), ("adapter_config.json", "merge")),
    # beside them
    "a broken tokenizer": (text("tokenizer.json", "{"), ("tokenizer.json", "JSON")),
    "broken settings": (text("tokenizer_config.json", "nothing"), ("tokenizer_config.json", "JSON")),
    "a tokenizer's vocabulary": (values(vocab_size=100), (WEIGHTS, "(104, 32)", "(100, 32)")),
    "a broken generation config": (text("generation_config.json", "{"), ("generation_config.json", "JSON")),
    "an end token as text": (
        values("generation_config.json", eos_token_id="1"),
        ("generation_config.json", "eos_token_id", "'1'"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_right_is_refused_as_what_it_is(case, folder):
    edit, words = REFUSED[case]
    edit(folder)
    with pytest.raises(UserError) as error:
        prepared(folder)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("edit", "theta", "scaling"),
    [
        (values(**OLD_KEYS, rope_theta=5e5), 5e5, None),
        (values(**OLD_KEYS), 1e4, None),
        (values(rope_theta=1e4, rope_scaling=None), 1e4, None),
        (values(rope_theta=5e5, rope_parameters={"rope_type": "default"}), 5e5, None),
        (values(**OLD_KEYS, rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3}), 5e5, LLAMA3),
        (
            values(rope_theta=5e5, rope_scaling=None, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}),
            5e5,
            LLAMA3,
        ),
    ],
    ids=["old", "none", "both", "both in part", "old llama3", "new llama3"],
)
def test_rotary_positions_stand_under_the_keys_of_transformers_4_or_5(edit, theta, scaling, folder):
    edit(folder)
    found = Architecture.from_hub(prepared(folder).config)
    assert found.rope_theta == theta
    assert (found.rope_scaling and {key: found.rope_scaling[key] for key in LLAMA3}) == scaling


def test_an_override_decides_between_two_thetas(folder):
    values(rope_theta=5e5)(folder)
    assert Architecture.from_hub(prepared(folder, config_overrides={"rope_theta": 7}).config).rope_theta == 7.0


@pytest.mark.parametrize(("key", "value"), [("max_position_embeddings", 64.0), ("rms_norm_eps", "x"), ("vocab_size", "x")])
def test_an_override_of_another_type_is_refused_by_its_key(key, value, folder):
    with pytest.raises(UserError, match=r"model\.config_overrides") as error:
        prepared(folder, config_overrides={key: value})
    assert key in str(error.value)


def test_planning_refuses_a_broken_config_in_one_line(folder):
    for edit, words in (REFUSED["broken"], REFUSED["a number written as text"]):
        shutil.copy(folder / "config.json", folder / "kept.json")
        edit(folder)
        with pytest.raises(UserError, match=r"config\.json") as error:
            architecture_of(ModelConfig(path=str(folder)))
        assert all(word in str(error.value) for word in words)
        shutil.copy(folder / "kept.json", folder / "config.json")


@pytest.mark.parametrize("edit", [as_type(torch.float16), sharded(), tensors(lambda w: w | {FREQUENCIES: w[NORM].clone()})])
def test_half_precision_shards_and_old_frequencies_are_read(edit, folder):
    edit(folder)
    assert prepared(folder).path == folder


def test_a_tied_head_of_its_own_must_equal_the_embedding(made, tmp_path):
    folder = shutil.copytree(made[True], tmp_path / "model")
    tensors(lambda w: w | {HEAD: w[EMBEDDING].clone()})(folder)
    assert prepared(folder).config.tie_word_embeddings
    tensors(lambda w: w | {HEAD: w[EMBEDDING].index_fill(0, torch.tensor([103]), 0.5)})(folder)
    with pytest.raises(UserError, match="tie_word_embeddings=false") as error:
        prepared(folder)
    assert f"{folder / WEIGHTS}: {HEAD!r} differs" in str(error.value)
    untied = prepared(folder, config_overrides={"tie_word_embeddings": False})
    assert not json.loads((untied.path / "config.json").read_text())["tie_word_embeddings"]


def test_a_body_with_tied_embeddings_is_a_whole_model(made, tmp_path):
    folder = shutil.copytree(made[True], tmp_path / "model")
    tensors(body)(folder)
    values(architectures=["LlamaModel"])(folder)
    hub = prepared(folder)
    assert json.loads((hub.path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("change", [body, lambda w: body(w) | {"score.weight": w[NORM][None].clone()}, lambda w: w])
def test_a_critic_starts_from_a_body_a_reward_model_or_a_language_model(change, made, folder):
    policy = prepared(made[False])
    tensors(change)(folder)
    values(architectures=["LlamaForSequenceClassification"], num_labels=1)(folder)
    (folder / "tokenizer.json").unlink()
    critic = prepare_critic(ModelConfig(), str(folder), folder.parent / "critic_model", policy)
    assert (critic.path, critic.tokenizer) == (folder, policy.tokenizer)


def test_a_critic_reads_the_policys_tokens(made, folder):
    policy = prepared(made[False])
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"x": ', '"ignored": ').replace('"y": ', '"x": ').replace('"ignored": ', '"y": '))
    with pytest.raises(UserError, match=r"critic\.path=.*tokenizer"):
        prepare_critic(ModelConfig(), str(folder), folder.parent / "critic_model", policy)


def test_end_tokens_are_the_tokenizers_the_models_and_those_it_was_made_to_write_with(folder):
    values(eos_token_id=5)(folder)
    values("generation_config.json", eos_token_id=[7, 5, 9999])(folder)
    assert prepared(folder).end_token_ids == (1, 5, 7)
    (folder / "generation_config.json").unlink()
    assert prepared(folder).end_token_ids == (1, 5)


def test_the_policy_chooses_among_the_tokenizer_s_ids_added_ones_included(folder):
    """104 ids and an added one; the model has 120 rows."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {**tokenizer["added_tokens"][0], "id": 104, "content": "<tool>"}
    values("tokenizer.json", added_tokens=[*tokenizer["added_tokens"], added])(folder)
    rows = {EMBEDDING: torch.zeros(120, 32), HEAD: torch.zeros(120, 32)}
    save_file({**load_file(folder / WEIGHTS), **rows}, folder / WEIGHTS, {"format": "pt"})
    values(vocab_size=120)(folder)
    hub = prepared(folder)
    assert (hub.config.vocab_size, hub.num_token_ids) == (120, 105)
    check_stops(RolloutConfig(stop_token_ids=(0, 104), stop=("#",)), hub)
    with pytest.raises(UserError, match=r"^rollout\.stop_token_ids: found 105, expected ids of the tokenizer, 0 to 104$"):
        check_stops(RolloutConfig(stop_token_ids=(105,)), hub)
