"""The way into a container: through a stand-in for pyxis, which takes its options and starts each task in the image."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from nemo_amft.observe.metrics import read_metrics
from tests.slurm import image
from tests.slurm.cluster import REPOSITORY, SMALL

SHORT = ("warmup.steps=1", "trainer.max_steps=1")


@pytest.fixture
def pyxis(slurm):
    if slurm.plugstack is None:
        pytest.skip("the stand-in for pyxis needs gcc and libslurm-dev")
    return slurm


def test_tasks_run_in_the_image_with_the_folders_of_the_job(pyxis, tmp_path):
    """An image of nothing but folders: what the tasks then have comes from --container-mounts and the image's environment."""
    root, run_dir = tmp_path / "image", tmp_path / "run"
    for folder in ("etc", "tmp", "proc", "sys", "dev", "root"):
        (root / folder).mkdir(parents=True)
    (root / "etc" / "environment").write_text(f"PATH={Path(sys.prefix) / 'bin'}:/usr/bin:/bin\nIN_IMAGE=yes\n")
    python = Path(sys.executable).resolve().parents[1]
    wanted = {"/usr", "/bin", "/lib", "/lib64", str(python), str(Path(sys.prefix).resolve()), sys.prefix}
    mounts = ",".join(sorted(f"{path}:{path}:ro" for path in wanted if Path(path).exists()))
    job = pyxis.submit(
        "amft_math.sh", *SMALL, *SHORT, "model.tensor_model_parallel_size=1", nodes=1, RUN_DIR=str(run_dir),
        CONTAINER_IMAGE=str(root), MOUNTS=mounts, HF_HOME=str(tmp_path / "hub"), VENV="/nonexistent",
    )  # fmt: skip
    assert job.wait() == "COMPLETED", job.log
    assert len([r for r in read_metrics(run_dir) if r["phase"] == "train"]) == 1
    assert f"({REPOSITORY}/nemo_amft" in job.log  # the code is the folder's that the job was submitted from


def test_an_image_that_is_not_there_fails_the_job(pyxis, tmp_path):
    job = pyxis.submit("amft_math.sh", *SMALL, nodes=1, RUN_DIR=str(tmp_path / "run"), CONTAINER_IMAGE=str(tmp_path / "none"))
    assert job.wait() == "FAILED"
    assert "no image" in job.log


def test_an_unknown_runtime_is_refused(slurm, tmp_path):
    job = slurm.submit("amft_math.sh", nodes=1, RUN_DIR=str(tmp_path), CONTAINER_IMAGE="x", CONTAINER_RUNTIME="docker")
    assert (job.wait(), job.exit_status()) == ("FAILED", 2)
    assert "CONTAINER_RUNTIME: found docker, expected pyxis or apptainer" in job.log


@pytest.mark.skipif("AMFT_TEST_IMAGE" not in os.environ, reason="AMFT_TEST_IMAGE=1 runs it: minutes, and 10 GB of disk")
@pytest.mark.timeout(3600)
def test_the_quickstart_runs_in_the_image_that_the_dockerfile_builds(pyxis, tmp_path):
    if reason := image.lacks():
        pytest.skip(reason)
    root, run_dir = tmp_path / "image", tmp_path / "run"
    image.build(root)
    try:
        job = pyxis.submit(
            "amft_math.sh", *SMALL, "rollout=vllm", "model.scratch.hidden_size=64", RUN_DIR=str(run_dir),
            CONTAINER_IMAGE=str(root), HF_HOME=str(tmp_path / "hub"), VENV="/nonexistent",
        )  # fmt: skip
        assert job.wait(900) == "COMPLETED", job.log
        assert len([r for r in read_metrics(run_dir) if r["phase"] == "train"]) == 5
    finally:
        shutil.rmtree(root, ignore_errors=True)
