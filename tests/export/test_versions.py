"""An exported model is the same in the transformers that clusters have: `make test-export` installs them by pip."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from nemo_amft.config.schema import ModelConfig, ScratchConfig
from nemo_amft.models.builder import build_policy
from nemo_amft.models.hub_model import prepare_hub_model
from nemo_amft.models.hub_weights import load_hub_weights, save_hub_model
from nemo_amft.parallel import groups, platform
from tests.parallel.ranks import run_ranks
from tests.unit.test_hub_tokenizer import byte_level

VERSIONS = ("4.51.3", "4.57.6")
ROOT = Path(__file__).resolve().parents[2]
TEXT = "  12 + 345 =\n\n\tfor x?"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CHAT = "{% for m in messages %}<user>{{ m['content'] }}\n{% endfor %}"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "qwen2": (ModelConfig(scratch=ScratchConfig(family="qwen2", **SIZES)), "32"),
    "llama": (ModelConfig(path="llama"), "bf16"),
    "qwen3": (ModelConfig(path="qwen3", config_overrides={"rope_theta": 300}), "32"),
}


def write_sources(root: Path) -> None:
    """Models as transformers 5 writes them; tokenizers with class names of version 4 and 5, and several end tokens."""
    sizes = {**SIZES, "vocab_size": 300, "max_position_embeddings": 256, "initializer_range": 0.2, "eos_token_id": [257, 258]}
    configs = {
        "llama": LlamaConfig(**sizes, rope_parameters={"rope_theta": 100.0, **LLAMA3}),
        "qwen3": Qwen3Config(**sizes, head_dim=32, tie_word_embeddings=True),
    }
    classes = {"llama": "LlamaTokenizerFast", "qwen3": "TokenizersBackend"}
    for name, config in configs.items():
        byte_level(root / name, config, classes[name], extra_special_tokens=["<one>"], chat_template=CHAT)
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(root / name)
        (root / name / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258], "top_p": 0.8}))


def export(root: Path) -> None:
    """Body of a rank: each of `MODELS` through Megatron to root/out."""
    groups.initialize(ModelConfig(), seed=1)
    for name, (model, precision) in MODELS.items():
        model = model if model.path is None else replace(model, path=str(root / model.path))
        hub = prepare_hub_model(model, root / "base" / name)
        with platform.megatron():
            chunks = build_policy(hub.config, model, precision)
        load_hub_weights(chunks, hub.config, hub.path)
        save_hub_model(chunks, hub, root / "out" / name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("export")
    write_sources(root)
    run_ranks(1, export, root)
    return {name: root / "out" / name for name in MODELS}


def python_with(version: str) -> Path:
    """The interpreter of an environment beside .venv with that transformers and .venv's torch; skips where pip has none."""
    folder = ROOT / f".venv-export-{version}"
    python, built = folder / "bin" / "python", folder / ".built"
    if not built.exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"]
        done = subprocess.run([*pip, f"transformers=={version}"], capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder)
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            pytest.skip(f"pip installs no transformers {version}: {reasons[-1]}")
        # After its own packages on the path, so that these win; what it lacks, torch and jinja2, is .venv's.
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "torch_of_venv.pth").write_text(sysconfig.get_path("purelib") + "\n")
        built.touch()
    return python


def read_with(python: Path | str, folders: dict[str, Path]) -> tuple[str, dict]:
    command = [str(python), str(ROOT / "tests" / "export" / "read.py"), TEXT, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    return result["version"], {name: result["found"][str(folder)] for name, folder in folders.items()}


@pytest.fixture(scope="module")
def here(exported) -> dict:
    """What this environment's transformers reads."""
    version, found = read_with(sys.executable, exported)
    assert version.startswith("5.")
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_model_is_the_same_in_every_transformers(version, exported, here):
    read_version, found = read_with(python_with(version), exported)
    assert read_version == version
    for name, theirs in found.items():
        ours = dict(here[name])
        error = (torch.tensor(theirs.pop("logits")) - torch.tensor(ours.pop("logits"))).abs().max()
        assert error < (1e-5 if ours["dtype"] == "torch.float32" else 0.02), (name, error)
        assert theirs == ours, name


def test_an_exported_model_reads_text_as_its_source_does(here):
    assert {name: found["dtype"] for name, found in here.items()} == {
        "qwen2": "torch.float32",
        "llama": "torch.bfloat16",
        "qwen3": "torch.float32",
    }
    for name, found in here.items():
        assert found["text"] == TEXT, name
        assert len(found["ids"]) == len(TEXT), name
        if name != "qwen2":
            assert found["end"] == [257, [257, 258]], name
            assert found["prompt"] == f"<user>{TEXT}\n", name
