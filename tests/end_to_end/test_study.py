"""A study of two cells, cut short and continued, to its report."""

from __future__ import annotations

import csv

import pytest
import yaml

from nemo_amft import study
from tests.end_to_end.launch import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_study_runs_its_cells_once_and_reports_on_all_of_them(tmp_path, capsys):
    shared = [override for override in SMALL if not override.startswith("controller.")]  # cells have other controllers
    small = [*shared, "rollout=megatron", "warmup.steps=4", "trainer.max_steps=2", "validation.every=1", "task.num_longer=8"]
    file = tmp_path / "pair.yaml"
    cells = {"grpo": ["method=grpo"], "half": ["method=amft_grpo", "controller=fixed", "controller.mu=0.5"]}
    single = ["trainer.devices=1", "model.tensor_model_parallel_size=1", "checkpoint.export_hf=false"]
    file.write_text(yaml.safe_dump({"config": "quickstart", "seeds": [1], "overrides": [*small, *single], "cells": cells}))
    out = tmp_path / "out"
    assert study.main([str(file), "--out", str(out), "--only", "grpo"]) == 0
    first = (out / "grpo" / "seed_1" / "metrics.jsonl").read_bytes()
    assert study.main([str(file), "--out", str(out), "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 runs, 1 of them finished before" in printed
    assert (out / "grpo" / "seed_1" / "metrics.jsonl").read_bytes() == first
    with (out / "report" / "runs.csv").open() as lines:
        assert [(row["name"], row["finished"]) for row in csv.DictReader(lines)] == [("grpo", "True"), ("half", "True")]
    assert "final longer" in printed
    assert (out / "report" / "comparison.png").stat().st_size > 0


def test_a_run_that_fails_leaves_the_others_and_is_named(tmp_path, capsys):
    file = tmp_path / "one.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "config": "quickstart",
                "seeds": [1],
                "overrides": ["trainer.devices=1", "model.tensor_model_parallel_size=1", "rollout=megatron"],
                # Found only when the model's data are looked at: a prompt of 2 tokens holds no problem.
                "cells": {"short": ["data.max_prompt_tokens=2"]},
            }
        )
    )
    assert study.main([str(file), "--out", str(tmp_path / "out")]) == 1
    assert "short seed 1: see " in capsys.readouterr().err
    assert "data.max_prompt_tokens: found 2" in (tmp_path / "out" / "short" / "seed_1.log").read_text()
