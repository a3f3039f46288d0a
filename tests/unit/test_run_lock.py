"""A run directory has one owner: who lives is not disturbed, who is dead is followed at once where that can be known."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict, replace

import pytest

from nemo_amft.config.run_dir import _wandb_id, check_folder, refuse_foreign_files
from nemo_amft.config.schema import ExpManagerConfig
from nemo_amft.parallel import run_lock
from nemo_amft.types import UserError

HOLDER = """
    import sys, time
    from pathlib import Path
    from nemo_amft.parallel import run_lock
    run_lock.BEAT_S = 0.1
    run_lock.hold(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def given_back():
    yield
    run_lock.release()


def _leave(folder, **changes):
    """The lock of somebody else, as `changes` to our own says."""
    owner = replace(run_lock._me(), token="theirs", **changes)
    (folder / "run.lock").write_text(json.dumps(asdict(owner)))


def test_a_folder_in_use_is_refused_and_left_as_it_was(tmp_path, holder):
    before = (tmp_path / "run.lock").read_text()
    with pytest.raises(UserError, match=f"run.lock: found a run in this folder by process {holder.pid} on .*, expected none"):
        run_lock.hold(tmp_path)
    assert os.listdir(tmp_path) == ["run.lock"]
    assert (tmp_path / "run.lock").read_text() == before


def test_the_folder_of_a_killed_process_is_taken_over_at_once_with_a_word(tmp_path, holder, capfd):
    holder.kill()
    holder.wait()
    run_lock.hold(tmp_path)
    assert f"run.lock: taking over from process {holder.pid} on " in capfd.readouterr().err
    run_lock.release()
    assert os.listdir(tmp_path) == []


def test_a_requeued_job_takes_over_from_itself_on_another_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    _leave(tmp_path, machine="another node", restart_count=0)
    run_lock.hold(tmp_path)
    assert json.loads((tmp_path / "run.lock").read_text())["restart_count"] == 1


@pytest.mark.parametrize("beats", [True, False])
def test_an_owner_on_another_machine_lives_as_long_as_its_time_moves(tmp_path, monkeypatch, beats):
    monkeypatch.setattr(run_lock, "DEAD_S", 1.5)
    _leave(tmp_path, machine="another node", job_id="16")
    if beats:
        threading.Timer(0.6, lambda: os.utime(tmp_path / "run.lock")).start()
        with pytest.raises(UserError, match="Slurm job 16, expected none"):
            run_lock.hold(tmp_path)
    else:
        run_lock.hold(tmp_path)
        assert json.loads((tmp_path / "run.lock").read_text())["token"] != "theirs"


def test_other_ranks_of_a_launch_find_their_own_lock_and_those_of_another_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "1234")
    run_lock.hold(tmp_path)
    monkeypatch.setenv("RANK", "1")
    run_lock.hold(tmp_path)
    monkeypatch.setenv("MASTER_PORT", "4321")
    with pytest.raises(UserError, match="found a run in this folder"):
        run_lock.hold(tmp_path)


@pytest.mark.parametrize("fate", ["removed", "taken over by process 1 on elsewhere"])
def test_a_run_that_has_lost_its_folder_ends_before_it_does_harm(tmp_path, holder, fate):
    if fate == "removed":
        (tmp_path / "run.lock").unlink()
    else:
        _leave(tmp_path, pid=1, host="elsewhere")
    started = time.monotonic()
    _, errors = holder.communicate(timeout=30)
    assert (holder.returncode, time.monotonic() - started < 30) == (1, True)
    assert f"run.lock was {fate}: this run has lost its folder and ends" in errors


def test_a_run_that_is_continued_continues_its_wandb_run(tmp_path):
    ours = ExpManagerConfig(create_wandb_logger=True)
    first = _wandb_id(ours, tmp_path)
    assert first["resume"] == "allow"
    assert _wandb_id(ours, tmp_path) == first
    assert _wandb_id(replace(ours, wandb_logger_kwargs={"id": "mine"}), tmp_path) == {}


def test_files_that_no_run_wrote_are_not_replaced(tmp_path):
    refuse_foreign_files(tmp_path / "new")
    (tmp_path / "notes.txt").touch()
    refuse_foreign_files(tmp_path)
    (tmp_path / "figures").mkdir()
    with pytest.raises(UserError, match=r"found figures in .*, of no run of this program, expected a new folder or a run's"):
        refuse_foreign_files(tmp_path)
    (tmp_path / "cmd-args.log").touch()
    refuse_foreign_files(tmp_path)


def test_a_folder_that_a_rank_does_not_share_or_may_not_write_to_is_found_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(UserError, match=rf"^{tmp_path}: found nothing of rank 0's there on rank 3 on \S+, expected a folder"):
        check_folder(tmp_path, within_s=0.0)
    (tmp_path / run_lock.FILE_NAME).touch()
    (tmp_path / "checkpoints").mkdir()
    check_folder(tmp_path)
    may = os.access  # root may write wherever a file system lets anyone
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "checkpoints" and may(path, mode))
    with pytest.raises(UserError, match=rf"^{tmp_path}/checkpoints: cannot be written to by rank 3 on \S+, expected a folder"):
        check_folder(tmp_path)
