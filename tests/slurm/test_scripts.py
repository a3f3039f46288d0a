"""What can be said of the job scripts without running them."""

from __future__ import annotations

import subprocess

import pytest

from tests.slurm.cluster import REPOSITORY

SCRIPTS = sorted(path.name for path in (REPOSITORY / "slurm").glob("*.sh") if path.name != "common.sh")


def test_the_scripts_are_there():
    assert {"amft_math.sh", "amft_general_points.sh", "amft_virl.sh", "evaluate.sh", "sweep.sh", "report.sh"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_sbatch_line_comes_after_the_first_command(script):
    """Slurm ignores such a line in silence."""
    lines = (REPOSITORY / "slurm" / script).read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    assert any(line.startswith("#SBATCH") for line in lines[:first_command])
    assert not any("#SBATCH" in line for line in lines[first_command:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_settings_and_needs_no_slurm(script):
    done = subprocess.run(["bash", f"slurm/{script}", "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("RUN_DIR", "CONTAINER_IMAGE", "MOUNTS", "HF_HOME", "SBATCH_PARTITION"))


def test_outside_of_a_job_a_script_says_how_to_start_it(tmp_path):
    done = subprocess.run(["bash", REPOSITORY / "slurm/amft_math.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "not in a Slurm job: sbatch" in done.stderr


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "sweep.sh"])
def test_slurm_accepts_what_a_script_asks_for(slurm, script):
    assert "to start at" in slurm.call("sbatch", "--test-only", f"slurm/{script}")


@pytest.mark.parametrize(("what", "arrays"), [(("trainer.seed=1,2,3",), 1), (("--study", "studies/amft.yaml"), 2)])
def test_slurm_accepts_what_a_sweep_asks_for(slurm, tmp_path, what, arrays):
    out = slurm.call("bash", "slurm/sweep.sh", "--test-only", "--", *what, RUN_DIR=str(tmp_path))
    assert out.count("to start at") == arrays
    assert "job array" not in out


def test_a_task_without_a_configuration_fails_with_one_line(slurm, tmp_path):
    job = slurm.submit("amft_virl.sh", "--config-name", "none_such", nodes=1, RUN_DIR=str(tmp_path))
    assert (job.wait(), job.exit_status()) == ("FAILED", 2)
    assert job.log.count("nemo_amft: error: --config-name none_such: no such configuration") == 1, job.log
