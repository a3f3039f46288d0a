"""The command line: home directories, signs that hydra's grammar keeps for itself, keys that another library reads."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from nemo_amft import compare, convert, evaluate, report, study
from nemo_amft.config import override, rules
from nemo_amft.config.load import load
from nemo_amft.config.rules import lookup
from nemo_amft.config.run_dir import _settings
from nemo_amft.types import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def loaded(*overrides):
    return load(["--config-name", "quickstart", *overrides], check=False)


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        loaded(*arguments)
    return str(error.value)


@pytest.mark.parametrize(
    "key",
    ["model.path", "model.tokenizer", "model.chat_template", "critic.path", "data.train", "data.validation", "data.test",
     "reward.function", "exp_manager.exp_dir", "exp_manager.explicit_log_dir"],
)  # fmt: skip
def test_a_path_may_start_at_home(key, home):
    assert lookup(loaded(f"{key}=~/a-1/x.y"), key) == f"{home}/a-1/x.y"


def test_several_sources_of_problems_are_a_list(home):
    found = loaded("data.train=[~/a.jsonl, d/*.parquet]", "data.test=['b, c.jsonl']", "benchmarks.mine=[~/e]")
    assert (found.data.train, found.data.test) == ((f"{home}/a.jsonl", "d/*.parquet"), ("b, c.jsonl",))
    assert found.benchmarks == {"mine": (f"{home}/e",)}
    assert refusal("exp_manager.name=[a]") == "exp_manager.name: expected str, found ['a']"


def test_home_is_found_in_mappings_plugins_and_quotes_too(home):
    (home / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom nemo_amft.config.typed import Location\n"
        "@dataclass(frozen=True)\nclass C:\n    folder: Location = 'here'\n    text: str = '~/a'\n"
        "class Mine:\n    Config = C\n"
    )
    mine = "{_target_: ~/mine.py:Mine, folder: ~/f}"
    config = loaded("benchmarks={a: ~/a.jsonl, b: hub}", "benchmarks.c='~/c d.jsonl'", f"task={mine}")
    assert config.benchmarks == {"a": f"{home}/a.jsonl", "b": "hub", "c": f"{home}/c d.jsonl"}
    assert (config.task.target, config.task.config.folder) == (f"{home}/mine.py:Mine", f"{home}/f")
    assert config.task.config.text == "~/a"  # which its type does not call a path
    assert load(["--config-name", "virl_text", "task.source=~/virl"], check=False).task.config.source == f"{home}/virl"
    loggers = loaded("exp_manager.wandb_logger_kwargs={save_dir: ~/w, group: ~g}").exp_manager
    assert _settings(loggers, home)["wandb_logger_kwargs"]["save_dir"] == f"{home}/w"


def test_the_home_of_a_user_who_is_not_there_is_a_path_that_does_not_exist(home):
    config = loaded("data.train=~nobody-here/x.jsonl", "benchmarks.mine=~nobody-here/y")
    found = list(rules.violations(config, on_this_machine=False))
    assert (
        "data.train: expected a file, a glob, a folder or a hub id, found '~nobody-here/x.jsonl', which does not exist" in found
    )
    assert (
        "benchmarks.mine: expected a file, a glob, a folder or a hub id, found '~nobody-here/y', which does not exist" in found
    )
    with pytest.raises(UserError, match="--config-dir: no such folder, ~nobody-here/x"):
        load(["--config-dir", "~nobody-here/x", "--config-name", "x"])


def test_a_path_that_is_empty_is_refused():
    found = list(rules.violations(loaded("data.train=", "exp_manager.exp_dir=''"), on_this_machine=False))
    assert "data.train: expected a file, a glob, a folder or a hub id, found '', which does not exist" in found
    assert any(line.startswith("exp_manager.exp_dir: found nothing, expected a folder") for line in found)


def test_the_checkpoint_to_evaluate_may_start_at_home_and_hold_any_sign(home):
    (folder := home / "a, b=[c]").mkdir()
    (folder / "config.json").write_text("{}")
    arguments = evaluate.completed(["checkpoint=~/a, b=[c]"])
    assert f"checkpoint={folder}" in arguments
    assert loaded(arguments[-1]).model.path == str(folder)


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (compare.main, ["~/a", "~/b"]),
        (report.main, ["~/a"]),
        (study.main, ["~/a"]),
        (convert.main, ["export", "~/a", "~/b"]),
    ],
)  # fmt: skip
def test_paths_of_the_other_commands_may_start_at_home(main, arguments, home, capsys):
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert f"{home}/a" in capsys.readouterr().err


SIGNS = ["/a, b.jsonl", "/a=b.jsonl", "/a[1].jsonl", "[a]/x.jsonl", "/a{1}/x", "/a (2).jsonl", "/josé/数.jsonl", "/a#b", "/a'b",
         '/a"b', "/a;b&c", "/a~b", "x,", "glob(x)", "7", "1e3", "true", "~/a b", "/a\\'b,"]  # fmt: skip


@pytest.mark.parametrize("value", SIGNS)
@pytest.mark.parametrize("key", ["data.train", "exp_manager.explicit_log_dir"])
def test_a_path_with_a_sign_of_hydras_is_refused_with_the_quotes_that_work_in_a_shell(key, value, home):
    message = refusal(f"{key}={value}")
    assert message.startswith(f"{key}: found ")
    (argument,) = shlex.split(message.partition("; in a shell: ")[2])
    assert lookup(loaded(argument), key) == value.replace("~/", f"{home}/")
    assert lookup(loaded(override.argument(key, value)), key) == value.replace("~/", f"{home}/")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.train=/a,b"],
         "data.train: found ',' in /a,b, expected quotes around such a value (slurm/sweep.sh and nemo_amft.study run a "
         "grid); in a shell: 'data.train=\"/a,b\"'"),
        (["trainer.seed=1,2"],
         "trainer.seed: found several values, 1,2, expected one (a list is [1,2]); slurm/sweep.sh and nemo_amft.study run a "
         "grid"),
        (["task.operands=[3,4"],
         "task.operands=[3,4: no viable alternative at input '[3,4' (quote a value with special characters)"),
        (["exp_manager.name=7"], "exp_manager.name: found 7, expected text; in a shell: 'exp_manager.name=\"7\"'"),
        (["data.train=/my", "data", "set/x", "optim.lr=1"],
         "data: expected key=value; where it belongs to data.train, in a shell: 'data.train=\"/my data set/x\"'"),
        (["--resolve"], "--resolve: expected with --cfg, which prints the configuration"),
        (["--package", "data"], "--package: expected with --cfg, which prints the configuration"),
        (["task._target_=mine.py"], "task._target_: expected dotted.path.Class or file.py:Class, found 'mine.py'"),
    ],
)  # fmt: skip
def test_what_hydra_reads_otherwise_than_meant_is_one_line(arguments, message):
    assert refusal(*arguments) == message


def test_a_yaml_that_holds_no_keys_is_refused(tmp_path):
    for content, reason in (("7\n", "int"), ("# @ of a comment\n", "components")):
        (tmp_path / "mine.yaml").write_text(content)
        with pytest.raises(UserError, match=f"^--config-name mine: .*{reason}"):
            load(["--config-path", str(tmp_path), "--config-name", "mine"])


@pytest.mark.parametrize("argument", ["api_key=S3CRET,", "api_key=S3CRET#", "settings={api_key: S3CRET#}"])
def test_a_secret_that_hydra_cannot_read_is_not_shown(argument):
    assert "S3CRET" not in refusal(f"exp_manager.wandb_logger_kwargs.{argument}")
    assert "S3CRET" not in refusal("exp_manager.wandb_logger_kwargs.api_key=S3CRET", "S3CRET")


def test_a_study_may_stand_in_a_folder_with_any_sign(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("config: quickstart\nseeds: [1]\nbase: [method=sft]\ncells: {a: [method=grpo]}\n")
    out = tmp_path / "runs, old [1]"
    assert study.main([str(tmp_path / "s.yaml"), "--out", str(out), "--list"]) == 0
    *_, cell = capsys.readouterr().out.splitlines()
    config = loaded(*shlex.split(cell)[-3:])
    assert (config.model.path, config.exp_manager.explicit_log_dir) == (f"{out}/base/hf", f"{out}/a/seed_1")


# ---- keys that another library reads

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 8,
          "intermediate_size": 96, "max_position_embeddings": 256, "mine": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("model.config_overrides.num_hidden_layer", "num_hidden_layers"),
        ("model.config_overrides.rope_tetha", "rope_theta"),
        ("model.config_overrides.max_position_embedings", "max_position_embeddings"),
        ("model.config_overrides.mines", "mine"),
        ("model.config_overrides.rope_parameters.rope_typ", "rope_type"),
        ("exp_manager.wandb_logger_kwargs.projct", "project"),
        ("exp_manager.wandb_logger_kwargs.tag", "tags"),
    ],
)
def test_a_key_that_the_library_does_not_know_names_the_nearest_that_it_does(key, found, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config = loaded(f"model.path={tmp_path}", f"{key}=1")
    (message,) = (line for line in rules.violations(config, on_this_machine=False) if line.startswith(key))
    assert message.endswith(f"did you mean {found}?")


def test_a_size_that_is_no_number_is_refused_before_it_is_computed_with(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config = loaded(f"model.path={tmp_path}", "model.config_overrides.num_hidden_layers=ten")
    expected = "model.config_overrides.num_hidden_layers: found 'ten', expected an integer of at least 1"
    assert list(rules.violations(config, on_this_machine=False)) == [expected]


def test_keys_that_a_library_knows_are_taken(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config = loaded(
        f"model.path={tmp_path}",
        "model.config_overrides={rope_theta: 40000, mine: 2, rope_parameters: {factor: 2.0}, id2label: {0: a}}",
        "exp_manager.wandb_logger_kwargs={entity: e, fork_from: x}",  # the second is rare: wandb itself is asked
    )
    free = re.compile("model.config_overrides|exp_manager.wandb_logger_kwargs")
    assert not [line for line in rules.violations(config, on_this_machine=False) if free.match(line)]
