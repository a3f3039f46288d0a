"""A sweep is a job array and a report that waits for it."""

from __future__ import annotations

import json
import re

import pytest

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
