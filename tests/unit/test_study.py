"""A study's file, and the commands it stands for."""

import pytest

from nemo_amft import study
from nemo_amft.types import UserError

FILE = """
config: quickstart
seeds: [1, 2]
overrides: [trainer.max_steps=3, trainer.devices=1, model.tensor_model_parallel_size=1]
cells:
  grpo: [method=grpo]
  half: [method=amft, controller=fixed, controller.mu=0.5]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    return path


def test_every_seed_has_all_cells_before_the_next_one(file, tmp_path, capsys):
    assert study.main([str(file), "--out", str(tmp_path / "out"), "--list", "trainer.log_every=7"]) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = [{word.partition("=")[0]: word.partition("=")[2] for word in command if "=" in word} for command in commands]
    assert [(c["exp_manager.name"], c["trainer.seed"]) for c in said] == [
        ("grpo", "1"),
        ("half", "1"),
        ("grpo", "2"),
        ("half", "2"),
    ]
    assert said[1]["controller.mu"] == "0.5"
    assert all(c["trainer.max_steps"] == "3" and c["trainer.log_every"] == "7" for c in said)
    assert len({c["exp_manager.explicit_log_dir"] for c in said}) == 4


def test_only_the_cells_that_are_asked_for(file, tmp_path, capsys):
    study.main([str(file), "--out", str(tmp_path), "--list", "--only", "half"])
    assert capsys.readouterr().out.count("\n") == 2


def test_an_override_that_does_nothing_in_one_cell_is_no_word_of_the_list(file, tmp_path, capsys):
    study.main([str(file), "--out", str(tmp_path), "--list", "method.rl.lam=0.9"])  # grpo has no use for it
    assert capsys.readouterr().err == ""


def test_several_processes_are_started_by_torchrun(file, tmp_path, capsys):
    study.main([str(file), "--out", str(tmp_path), "--list", "--only", "half", "trainer.devices=2"])
    assert "-m torch.distributed.run --standalone --nproc-per-node 2 -m nemo_amft.train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cells:", "cell:"), "{file}.cell: unknown key; did you mean {file}.cells?"),
        (("  grpo:", "  a/b:"), "cells: found the name 'a/b'"),
        (("[1, 2]", "[]"), "found no cells or no seeds"),
        (("  grpo:", "  base:"), "cells: found the name 'base'"),
        (("  grpo:", "  1:"), "cells: found the name '1', expected letters, digits and _.+-, and no digit in front"),
        (("config: quickstart", "config: quickstart\n]"), "expected the YAML file of a study"),
        ((FILE, "- grpo"), "found list at the top level, expected the keys of a study"),
        (("seeds:", "target: 80\nseeds:"), "target: found 80, expected an accuracy above 0 and at most 1"),
        (("seeds:", "reference: gpro\nseeds:"), "reference: found gpro, expected a cell"),
    ],
)
def test_a_file_that_is_no_study_is_one_line(file, change, message):
    file.write_text(FILE.replace(*change))
    with pytest.raises(UserError) as raised:
        study.read_study(file)
    assert message.format(file=file) in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "gpro"], "found gpro, expected a cell of the study, such as grpo"),
        (["optim.lrr=1"], "optim.lrr"),
        (["--jobs", "0"], "--jobs: found 0, expected at least 1"),
        (["data.samples_per_prompt=1"], "grpo: data.samples_per_prompt: found 1, expected at least 2"),
    ],
)
def test_a_mistake_is_found_before_anything_is_run(file, tmp_path, capsys, arguments, message):
    assert study.main([str(file), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_cells_start_from_the_model_that_the_base_makes(file, tmp_path, capsys):
    file.write_text(FILE + "base: [method=sft, trainer.max_steps=7]\n")
    study.main([str(file), "--out", str(tmp_path / "out"), "--list"])
    base, *cells = capsys.readouterr().out.splitlines()
    assert {"trainer.max_steps=7", "checkpoint.export_hf=true", "trainer.seed=1"} <= set(base.split())
    assert "model.path" not in base
    assert len(cells) == 4
    assert all(f"model.path={tmp_path}/out/base/hf" in line for line in cells)
