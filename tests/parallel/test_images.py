"""Images on their way to a model that sees: through vLLM's multimodal interface, against transformers."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from nemo_amft.config.schema import RolloutConfig
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.types import Request, SamplingParams, UserError
from tests.parallel.ranks import run_ranks
from tests.parallel.seeing_model import log_probs_by_transformers, save_seeing_model

pytestmark = pytest.mark.slow

MESSAGES = ({"role": "user", "content": "two colours="},)
DRAWN = SamplingParams(6, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_seeing_model(tmp_path_factory.mktemp("seeing"))


def pictures(*colours: str) -> tuple[Image.Image, ...]:
    return tuple(Image.new("RGB", (90, 70), colour) for colour in colours)


@functools.cache
def drawn(folder: Path) -> list[tuple[list[int], list[float]]]:
    """Responses to two, to other two, to one, and to no images."""
    return run_ranks(1, draw, folder, timeout=120)[0]


def draw(folder: Path) -> list[tuple[list[int], list[float]]]:
    from transformers import AutoTokenizer

    from nemo_amft.config.schema import ModelConfig
    from nemo_amft.parallel import groups
    from nemo_amft.rollout.vllm import VLLMEngine

    groups.initialize(ModelConfig(), seed=1)
    rollout = RolloutConfig(max_num_seqs=4, kv_cache_gb=0.03125, max_new_tokens=6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = VLLMEngine(folder, rollout, "32", 128, None, len(tokenizer), images=2)
    engine.wake()
    chat = ChatTemplate(tokenizer)
    shown = [pictures("red", "blue"), pictures("blue", "red"), pictures("red"), ()]
    requests = [Request(chat.prompt_ids(MESSAGES, len(images)), None, images) for images in shown]
    found = [(list(c.token_ids), list(c.log_probs)) for c in engine.generate(requests, DRAWN)]
    for more in (107, 114):  # with its image the prompt leaves too little room for a response, or is too long by itself
        long = Request((*chat.prompt_ids(MESSAGES, 1)[: 128 - 6 - 107], *[9] * more)[:122], None, pictures("red"))
        with pytest.raises(UserError, match=r"data\.max_prompt_tokens: found 122, too few for the images: "):
            engine.generate([long], DRAWN)
    engine.close()
    return found


@pytest.mark.parametrize(("which", "colours"), [(0, ("red", "blue")), (1, ("blue", "red")), (2, ("red",))])
def test_what_is_drawn_has_the_probabilities_that_transformers_gives_it(folder, which, colours):
    tokens, log_probs = drawn(folder)[which]
    prompt = "<bos>" + "<image>" * len(colours) + "two colours="
    assert log_probs == pytest.approx(log_probs_by_transformers(folder, prompt, list(pictures(*colours)), tokens), abs=1e-4)


def test_the_images_and_their_order_matter(folder):
    found = [log_probs for _, log_probs in drawn(folder)]
    assert all(abs(a[0] - b[0]) > 1e-3 for i, a in enumerate(found) for b in found[:i])


def test_a_model_that_sees_plays_from_pictures_and_they_are_kept(folder, tmp_path):
    arguments = [
        f"checkpoint={folder}", "task=general_points_image", "rollout.max_new_tokens=8", "rollout.kv_cache_gb=0.03125",
        "data.max_prompt_tokens=900", "validation.final_prompts=3", f"exp_manager.explicit_log_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "nemo_amft.evaluate", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {f"{name}/accuracy" for name in ("test", "visual_ood", "rule_ood")} <= scores.keys()
    rollouts = tmp_path / "run" / "rollouts"
    rows = [json.loads(line) for line in (rollouts / "evaluation_visual_ood_000000.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        (name,) = row["images"]
        assert Image.open(rollouts / name).size == (1200, 1200)


def test_a_model_without_eyes_is_one_line(tmp_path):
    from transformers import AutoModelForCausalLM, Qwen2Config

    from nemo_amft.data.character_tokenizer import save_character_tokenizer, vocab_size

    save_character_tokenizer(tmp_path / "blind")
    config = Qwen2Config(
        vocab_size=vocab_size(), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "blind")
    arguments = [f"checkpoint={tmp_path / 'blind'}", "task=general_points_image", "rollout.max_new_tokens=8"]
    command = [sys.executable, "-m", "nemo_amft.evaluate", *arguments, f"exp_manager.explicit_log_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "found a qwen2 model, expected one that sees" in done.stderr
