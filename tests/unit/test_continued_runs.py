"""A run directory belongs to one run: what a command that continues it may change, and what is said of it."""

import json
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from transformers import AutoTokenizer

from nemo_amft.algorithms.inputs import fingerprints, of_examples, refuse_other_beginning
from nemo_amft.algorithms.run import finished_run
from nemo_amft.algorithms.run_data import RunData
from nemo_amft.config.continuation import Change, changes, refuse_fewer_steps
from nemo_amft.config.load import load
from nemo_amft.config.validate import resolved
from nemo_amft.data.character_tokenizer import save_character_tokenizer
from nemo_amft.models.checkpoints import NO_MANIFEST, damage, newest_state
from nemo_amft.types import Example, UserError


def configuration(*overrides: str):
    return load(["--config-name", "quickstart", *overrides], check=False)


@pytest.fixture
def run_dir(tmp_path):
    """Of a run of the quickstart."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(resolved(configuration())))
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), []),
        (("trainer.max_steps=999",), ["trainer.max_steps: 120 -> 999"]),
        (("optim.betas=[0.9,0.99]", "critic.optim.eps=1e-6"),
         ["optim.betas: [0.9, 0.95] -> [0.9, 0.99]", "critic.optim.eps: 1e-08 -> 1e-06"]),
        (("model.tensor_model_parallel_size=1",), ["model.tensor_model_parallel_size: 2 -> 1"]),
        (("optim.overlap_grad_reduce=true",), ["optim.overlap_grad_reduce: false -> true"]),
        (("data.train=a.jsonl",), ["data.train: null -> a.jsonl"]),  # what it holds decides
        (("exp_manager.wandb_logger_kwargs={group: one}",), ["exp_manager.wandb_logger_kwargs: {} -> {'group': 'one'}"]),
    ],
)  # fmt: skip
def test_what_may_change_between_processes_of_a_run_is_said(run_dir, overrides, said):
    assert sorted(map(str, changes(run_dir, configuration(*overrides)))) == sorted(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=grpo", "method._target_: found nemo_amft.algorithms.methods.policy_gradient.PolicyGradient, expected "),
        ("method.rl.clip_ratio=0.3", "method.rl.clip_ratio: found 0.3, expected 0.2 as in "),
        ("task.modulus=7", "task.modulus: found 7, expected 10 as in "),
        ("trainer.seed=2", "trainer.seed: found 2, expected 1 as in "),
        ("reward.function=my.py:score", "reward.function: found my.py:score, expected null as in "),
        ("model.scratch.seed=2", "model.scratch.seed: found 2, expected 1 as in "),
        ("model.config_overrides={rope_theta: 5}", "model.config_overrides: found {'rope_theta': 5}, expected {} as in "),
        (
            "model.chat_template_kwargs={thinking:false}",
            "model.chat_template_kwargs: found {'thinking': False}, expected {} as",
        ),
        ("controller=fixed", "controller._target_: found nemo_amft.algorithms.controllers.fixed.Fixed, expected "),
    ],
)
def test_another_run_is_refused(run_dir, override, said):
    with pytest.raises(UserError) as raised:
        changes(run_dir, configuration(override))
    assert str(raised.value).startswith(said)
    assert f"{run_dir / 'config.yaml'} to continue that run, or a folder of its own (exp_manager.name" in str(raised.value)


def test_a_key_that_the_run_s_version_had_not_is_said_and_not_refused(run_dir):
    values = yaml.safe_load((run_dir / "config.yaml").read_text())
    del values["task"]["modulus"]
    values["trainer"]["gone"] = 1
    (run_dir / "config.yaml").write_text(yaml.safe_dump(values))
    assert [str(change) for change in changes(run_dir, configuration())] == [
        "task.modulus: (no such key) -> 10",
        "trainer.gone: 1 -> (no such key)",
    ]


def test_a_new_folder_is_for_any_run(tmp_path):
    assert changes(tmp_path, configuration("method=grpo")) == []


def test_a_config_yaml_that_holds_none_is_refused(run_dir):
    (run_dir / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: found no configuration, expected the one that the run in this folder"):
        changes(run_dir, configuration())


@pytest.mark.parametrize("key", ["trainer.max_steps", "warmup.steps", "critic.warmup_steps"])
def test_fewer_steps_than_were_made_are_refused(tmp_path, key):
    progress = {"step": 4, "warmup_step": 4, "critic_step": 4}
    enough = ["trainer.max_steps=4", "warmup.steps=4", "critic.warmup_steps=4"]
    refuse_fewer_steps(configuration(*enough), progress, tmp_path)
    with pytest.raises(UserError, match=rf"^{key}: found 3, expected at least 4, the steps made by {tmp_path}, or a folder of"):
        refuse_fewer_steps(configuration(*enough, f"{key}=3"), progress, tmp_path)


EXAMPLES = [Example(f"p/{i}", ({"role": "user", "content": f"{i}+1"},), str(i + 1), f"It is {i + 1}") for i in range(5)]


@pytest.mark.parametrize(
    "other",
    [
        EXAMPLES[:4],
        [*EXAMPLES, replace(EXAMPLES[0], id="p/5")],
        EXAMPLES[::-1],
        *([replace(EXAMPLES[0], **edit), *EXAMPLES[1:]] for edit in (
            {"id": "q/0"}, {"messages": ({"role": "user", "content": "0+ 1"},)}, {"answer": "2"}, {"demonstration": None},
            {"demonstration": ("It is 1", "Sure?", "Yes")}, {"source": "a"}, {"response_prefix": "It"},
        )),
    ],
)  # fmt: skip
def test_other_examples_have_another_fingerprint(other):
    assert of_examples(other) != of_examples(EXAMPLES)
    assert of_examples([replace(example) for example in EXAMPLES]) == of_examples(EXAMPLES)


@pytest.fixture
def read(tmp_path):
    """(examples, hub model) as a run has read them."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_character_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 2000)
    hub = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(folder), tokenizer_path=folder, path=folder)
    return RunData(EXAMPLES[:3], EXAMPLES[:2], EXAMPLES[3:4], EXAMPLES[4:]), hub


def checkpoint(folder, inputs, step=2):
    """With nothing but the trainer's state, intact."""
    path = folder / "checkpoints" / f"step_{step:08d}"
    path.mkdir(parents=True)
    state = json.dumps({"progress": {"step": step}} | ({} if inputs is None else {"inputs": inputs})).encode()
    (path / "trainer.json").write_bytes(state)
    (path / "manifest.json").write_text(json.dumps({"trainer.json": [len(state), zlib.crc32(state)]}))
    return path


def refuse(folder, now, *changed: Change, config=None) -> list[str]:
    """What is said where nothing is refused."""
    said: list[str] = []
    refuse_other_beginning(config or configuration(), folder / "checkpoints", now, changed, said.append)
    return said


def edited(file, old: bytes, new: bytes):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def test_other_data_model_tokenizer_or_template_is_refused_before_a_model_is_built(tmp_path, read):
    data, hub = read
    now = fingerprints(data, hub)
    assert refuse(tmp_path, now) == []  # a new run
    path = checkpoint(tmp_path, json.loads(json.dumps(now)))
    assert refuse(tmp_path, fingerprints(*read)) == []

    def refused(key: str, what: str, data=data) -> str:
        with pytest.raises(
            UserError, match=rf"^{key}: found (an)?other {what} \(.*, expected what {path} was trained with"
        ) as error:
            refuse(tmp_path, fingerprints(data, hub), Change("data.validation_size", 2, 1))
        return str(error.value)

    # A problem of D_val among the prompts.
    text = refused("data.train", "prompts", replace(data, prompts=EXAMPLES[:4], validation=EXAMPLES[4:]))
    assert "(4 examples, " in text
    assert "(3 examples, " in text
    assert text.endswith("changed: data.validation_size: 2 -> 1")
    refused("data.validation", "validation set", replace(data, validation=EXAMPLES[4:]))
    refused("data.demonstrations", "demonstrations", replace(data, demonstrations=EXAMPLES[1:2]))
    said = refuse(tmp_path, fingerprints(replace(data, test=EXAMPLES[:1]), hub))
    assert len(said) == 1
    assert said[0].startswith("test set: another than before (1 examples, ")
    weights = hub.path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:256_100] + b"!" + content[256_101:])
    assert "files have changed" in refused("model.path", "model")
    weights.write_bytes(content)
    assert refuse(tmp_path, fingerprints(data, hub)) == []
    hub.tokenizer.chat_template += " "
    refused("model.chat_template", "chat template")
    hub.tokenizer.chat_template = hub.tokenizer.chat_template[:-1]
    edited(hub.path / "tokenizer_config.json", b"{", b"{ ")
    refused("model.tokenizer", "tokenizer")


def test_without_fingerprints_the_keys_decide(tmp_path, read):
    path = checkpoint(tmp_path, None)
    said = refuse(tmp_path, fingerprints(*read), Change("optim.lr", 1, 2))
    assert said == [f"{path}: an earlier version wrote it, without fingerprints of data, tokenizer and model: not checked"]
    with pytest.raises(
        UserError, match=r"^data\.validation_size: found another .*\(data\.validation_size: 2 -> 1\), expected the same"
    ):
        refuse(tmp_path, fingerprints(*read), Change("data.validation_size", 2, 1))


def test_a_checkpoint_in_the_way_of_a_new_run_and_one_that_is_further_are_refused(tmp_path, read):
    now = fingerprints(*read)
    path = checkpoint(tmp_path, now)
    with pytest.raises(UserError, match=r"^exp_manager\.resume_if_exists=false: found checkpoints in "):
        refuse(tmp_path, now, config=configuration("exp_manager.resume_if_exists=false"))
    with pytest.raises(UserError, match=rf"^trainer\.max_steps: found 1, expected at least 2, the steps made by {path}"):
        refuse(tmp_path, now, config=configuration("trainer.max_steps=1"))


def test_what_is_known_beforehand_is_of_a_state_as_it_was_written(tmp_path):
    """One bit can make another number of a step, in JSON that reads well."""
    before, newest = checkpoint(tmp_path, None, 2), checkpoint(tmp_path, None, 4)
    assert newest_state(newest.parent) == (newest, {"progress": {"step": 4}})
    (newest / "trainer.json").write_text('{"progress": {"step": 6}}')
    assert newest_state(newest.parent) == (before, {"progress": {"step": 2}})


@pytest.mark.parametrize("manifest", ["[]", '{"trainer.json": null}', '{"trainer.json": [7]}', "[" * 3000, "{"])
def test_a_manifest_that_is_none_is_a_damaged_checkpoint(tmp_path, manifest):
    path = checkpoint(tmp_path, None)
    (path / "manifest.json").write_text(manifest)
    assert damage(path) == NO_MANIFEST


@pytest.mark.parametrize(
    ("summary", "words"),
    [("", "not readable as JSON"), ("[]", "found a JSON list"), ('{"steps": null}', "steps: found None"), ("{}", "steps: ")],
)
def test_a_summary_that_is_none_is_one_line(tmp_path, summary, words):
    (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(UserError, match=rf"summary\.json: {words}"):
        finished_run(tmp_path, configuration())
