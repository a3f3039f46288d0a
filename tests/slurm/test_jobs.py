"""Jobs from sbatch to their end, also where they are asked to stop, lose a node, or fail."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from nemo_amft.observe.compare import differences
from nemo_amft.observe.metrics import read_metrics
from tests import failing_method
from tests.slurm.cluster import ENDED, SMALL, Job


def in_training(run_dir: Path) -> bool:
    """Whether the run has made a step of the main loop since it was last started."""
    path = run_dir / "metrics.jsonl"
    return path.exists() and any(r["phase"] == "train" for r in read_metrics(path))


def phases(job: Job) -> list[tuple[int, str]]:
    """(restart, phase) of each marker in the job's log."""
    lines = [line for line in job.log.splitlines() if line.startswith("== ")]
    return [(int(line.partition("restart ")[2].partition(":")[0]), line.rpartition(": ")[2]) for line in lines]


def test_quickstart_over_two_nodes_of_two_processes(slurm, tmp_path):
    run_dir = tmp_path / "run"
    job = slurm.submit("amft_math.sh", *SMALL, "trainer.max_steps=2", tasks=2, RUN_DIR=str(run_dir), WANDB_API_KEY="hush")
    assert job.wait() == "COMPLETED", job.log
    assert json.loads((run_dir / "summary.json").read_text())["world_size"] == 4
    assert [r["step"] for r in read_metrics(run_dir) if r["phase"] == "train"] == [0, 1]
    assert [phase for _, phase in phases(job)] == ["settings", "every node sees RUN_DIR", "doctor", "train", "finished"]
    assert "2 x 2 = 4: tensor 2 x pipeline 1 x context 1 x data 2" in job.log
    assert (run_dir / "logs" / f"amft_math_{job.id}_r0.log").read_text() == job.log
    assert "hush" not in job.log
    # A finished run that is put back into the queue ends at once.
    slurm.call("scontrol", "requeue", job.id)
    job.until(lambda: "the run is finished (2 steps)" in job.log, "the finished run's word")
    assert job.wait() == "COMPLETED", job.log
    assert (run_dir / "logs" / f"amft_math_{job.id}_r1.log").exists()


def test_a_job_that_is_asked_to_stop_continues_as_if_it_had_not_been(slurm, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    job = slurm.submit("amft_math.sh", *SMALL, "checkpoint.every=0", RUN_DIR=str(run_dir))
    # Before training has begun: put back, with nothing to save.
    job.until(lambda: (0, "every node sees RUN_DIR") in phases(job), "its first phase")
    slurm.call("scancel", "--batch", "--signal=USR1", job.id)
    job.until(lambda: (0, "back into the queue") in phases(job), "the queue")
    # In training, to the tasks alone, and to one at that: Slurm's steps count from 0, and the third is the run.
    job.until(lambda: in_training(run_dir), "training")
    slurm.call("scancel", "--signal=USR1", f"{job.id}.2")
    asked = time.monotonic()
    job.until(lambda: (1, "back into the queue") in phases(job), "the queue")
    print(f"saved and back in the queue after {time.monotonic() - asked:.1f} s")
    steps = len([r for r in read_metrics(run_dir) if r["phase"] == "train"])
    assert steps < 5, "it was not stopped"
    job.until(lambda: "resumed from" in job.log, "the checkpoint")
    job.until(lambda: len([r for r in read_metrics(run_dir) if r["phase"] == "train"]) > steps, "the next step")
    print(f"next step after {time.monotonic() - asked:.1f} s")
    assert job.wait() == "COMPLETED", job.log
    assert job.fields()["Restarts"] == "2"
    assert list(differences(uninterrupted, read_metrics(run_dir))) == []


def test_a_job_that_loses_a_node_continues_from_its_last_checkpoint(slurm, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    job = slurm.submit("amft_math.sh", *SMALL, RUN_DIR=str(run_dir))
    job.until(lambda: in_training(run_dir), "training")
    lost = slurm.call("scontrol", "show", "hostnames", job.fields()["NodeList"]).split()[-1]
    slurm.local_slurm("fail-node", lost)
    failed = time.monotonic()
    try:
        job.until(lambda: "resumed from" in job.log, "the checkpoint")
        print(f"resumed after {time.monotonic() - failed:.1f} s")
        assert job.wait() == "COMPLETED", job.log
    finally:
        slurm.local_slurm("start-node", lost)
    assert job.fields()["Restarts"] == "1"
    assert list(differences(uninterrupted, read_metrics(run_dir))) == []


def test_an_unknown_override_fails_before_anything_is_built(slurm, tmp_path):
    run_dir = tmp_path / "run"
    job = slurm.submit("amft_math.sh", *SMALL, "optim.learning_rat=1", tasks=2, RUN_DIR=str(run_dir))
    assert (job.wait(), job.exit_status()) == ("FAILED", 2)
    assert job.log.count("nemo_amft: error: optim.learning_rat: ") == 1, job.log
    assert [path.name for path in run_dir.iterdir()] == ["logs"]


def test_the_error_of_a_rank_ends_the_job_in_seconds_and_is_shown_once(slurm, tmp_path):
    job = slurm.submit("amft_math.sh", *SMALL, failing_method.TARGET, RUN_DIR=str(tmp_path / "run"))
    shown = job.until(lambda: failing_method.WORDS in job.log and time.monotonic(), "the error")
    assert (job.wait(), job.exit_status()) == ("FAILED", 1)
    print(f"ended {time.monotonic() - shown:.1f} s after the error")
    assert time.monotonic() - shown < 15
    assert job.log.count("Traceback") == 1, job.log


def test_a_phase_that_takes_too_long_shows_the_stacks_of_all_ranks(slurm, tmp_path):
    job = slurm.submit("amft_math.sh", *SMALL, "trainer.phase_timeout_s=0.001", RUN_DIR=str(tmp_path / "run"))
    assert (job.wait(), job.exit_status()) == ("FAILED", 1)
    assert job.log.count("nemo_amft: hung: rank") == 1, job.log
    assert all(f"--- stacks of rank {rank}\n" in job.log for rank in range(2)), job.log


def test_a_run_directory_that_not_all_nodes_see_is_refused(slurm):
    job = slurm.submit("amft_math.sh", *SMALL, RUN_DIR=str(slurm.private / "run"))
    # The first node, whose folder holds the job's own log file, is the only one that sees it.
    assert (job.wait(), job.exit_status()) == ("FAILED", 2)
    assert job.log.count("nemo_amft: error: RUN_DIR: node") == 1, job.log


@pytest.mark.parametrize("argument", ["exp_manager.exp_dir=elsewhere", "exp_manager.explicit_log_dir=elsewhere"])
def test_a_run_directory_given_as_an_override_is_refused(slurm, tmp_path, argument):
    job = slurm.submit("amft_math.sh", argument, nodes=1, RUN_DIR=str(tmp_path))
    job.until(lambda: job.state in ENDED, "its end")
    assert job.exit_status() == 2
    assert f"{argument}: the run directory of a job is set by RUN_DIR" in job.log


def test_requeues_are_capped(slurm, tmp_path):
    job = slurm.submit("amft_math.sh", *SMALL, nodes=1, RUN_DIR=str(tmp_path / "run"), MAX_REQUEUES="0")
    job.until(lambda: (0, "every node sees RUN_DIR") in phases(job), "its first phase")
    slurm.call("scancel", "--batch", "--signal=USR1", job.id)
    assert (job.wait(), job.exit_status()) == ("FAILED", 75)
    assert "MAX_REQUEUES=0" in job.log
