"""A sweep is a job array and a report that waits for it."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tests.slurm.cluster import SMALL, Job

SHORT = ("warmup.steps=1", "trainer.max_steps=1")


def test_an_array_over_seeds_is_followed_by_their_report(slurm, tmp_path):
    size = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", f"--output={slurm.folder}/%A_%a.log")
    # The model stays tensor-parallel over one rank, and both tasks run at the same time.
    arguments = (*SMALL, *SHORT, "model.tensor_model_parallel_size=1", "trainer.seed=1,2", "optim.betas=[0.9,0.95]")
    out = slurm.call(
        "bash", "slurm/sweep.sh", *size, "--", *arguments, RUN_DIR=str(tmp_path), SBATCH_OUTPUT=str(tmp_path / "r")
    )
    array, report = re.search(r"job array (\d+)\nreport: job (\d+)", out).groups()
    waiting = Job(slurm, report, tmp_path / "r")
    assert waiting.fields()["Dependency"].startswith(f"afterany:{array}_*")
    assert waiting.wait() == "COMPLETED", waiting.log + "".join(
        path.read_text() for path in slurm.folder.glob(f"{array}_*.log")
    )
    seeds = [json.loads((tmp_path / f"seed-{seed}" / "summary.json").read_text())["seed"] for seed in (1, 2)]
    assert seeds == [1, 2]
    # Both in one row: they have one name.
    rows = (tmp_path / "report" / "report.md").read_text().splitlines()
    assert re.match(r"\| sweep +\| 2 ", rows[2]), rows


def test_a_study_is_an_array_that_waits_for_its_base_and_is_followed_by_the_report(slurm, tmp_path):
    small = [word for word in SMALL[2:] if not word.startswith(("controller.", "checkpoint.export_hf"))]
    one = ["model.tensor_model_parallel_size=1", "trainer.devices=1", *SHORT]
    cells = {"grpo": ["method=grpo"], "half": ["controller=fixed", "controller.mu=0.5"]}
    study = {"config": "quickstart", "seeds": [2], "overrides": [*small, *one], "base": ["method=sft"], "cells": cells}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    size = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", f"--output={slurm.folder}/%A_%a.log")
    out = slurm.call(
        "bash", "slurm/sweep.sh", *size, "--", "--study", str(tmp_path / "study.yaml"),
        RUN_DIR=str(tmp_path / "run"), SBATCH_OUTPUT=str(tmp_path / "r"),
    )  # fmt: skip
    base, array, report = re.fullmatch(r"base: job (\d+)\n2 runs: job array (\d+)\nreport: job (\d+)\n", out).groups()
    done = Job(slurm, report, tmp_path / "r").wait()
    logs = "".join(path.read_text() for number in (base, array) for path in slurm.folder.glob(f"{number}_*.log"))
    assert done == "COMPLETED", logs
    for name in cells:
        config = yaml.safe_load((tmp_path / "run" / name / "seed_2" / "config.yaml").read_text())
        assert config["model"]["path"] == str(tmp_path / "run" / "base" / "hf")
        assert config["exp_manager"]["name"] == name
    rows = (tmp_path / "run" / "report" / "report.md").read_text().splitlines()
    assert [row.split()[1] for row in rows[2:4]] == ["grpo", "half"], rows


@pytest.mark.parametrize(
    ("table", "points"),
    [
        (("controller.eta_mu=5e-5,1e-4,2e-4", "controller.eta_h=1e-4,5e-4,1e-3"), 9),
        (("controller.meta_every=5,10,20,50,100",), 5),
    ],
)
def test_the_grids_of_the_papers_ablations_have_as_many_tasks_as_the_tables_have_cells(slurm, table, points):
    slurm.call("scontrol", "update", "PartitionName=batch", "State=DOWN")  # submit, and start nothing
    try:
        out = slurm.call("bash", "slurm/sweep.sh", "--", *table, RUN_DIR="/nonexistent")
        array = re.search(rf"{points} runs: job array (\d+)", out)[1]
        assert slurm.call("squeue", "--noheader", "--array", "--jobs", array).count("\n") == points
    finally:
        slurm.call("scancel", "--user=root")
        slurm.call("scontrol", "update", "PartitionName=batch", "State=UP")


def test_a_sweep_over_nothing_is_refused(slurm):
    out = slurm.call("bash", "slurm/sweep.sh", "--", "trainer.seed=1", "optim.betas=[0.9,0.95]", check=False)
    assert "found no KEY=A,B, expected at least one key with several values" in out
