"""Requests to stop: heard at any time, agreed by all ranks; a failure or a hang elsewhere is told apart from them."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from nemo_amft.parallel import signals, slurm
from nemo_amft.types import UserError
from tests.parallel.ranks import run_ranks


def ask_on_rank_1() -> list[str | None]:
    import torch.distributed as dist

    signals.listen()
    dist.init_process_group("gloo")
    stop = signals.StopRequests()
    before = stop.agreed()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
        while not signals._asked.is_set():
            time.sleep(0.01)
    return [before, stop.agreed(), stop.agreed()]


def test_a_signal_at_one_rank_stops_all_and_is_not_forgotten():
    said = "asked to by a signal"
    assert run_ranks(3, ask_on_rank_1, process_group=False) == [[None, said, said]] * 3


def at_the_clock(job_started: float) -> str | None:
    os.environ["SLURM_JOB_START_TIME"] = str(job_started)
    return signals.StopRequests("00:00:01:00").agreed()


def test_the_clock_counts_from_the_start_of_the_slurm_job():
    # One rank's clock is ahead of the other's; both stop.
    assert run_ranks(2, at_the_clock, time.time() - 61) == ["exp_manager.max_time_per_run is over"] * 2
    assert run_ranks(2, at_the_clock, time.time() - 1) == [None, None]


def test_times_are_written_as_in_nemo():
    assert signals.seconds("01:02:03:04") == 86400 + 2 * 3600 + 3 * 60 + 4
    for wrong in ("3:45:00", "00:01:00", "1h", "-1:00:00:00"):
        with pytest.raises(UserError, match=f"max_time_per_run: found {wrong}, expected days"):
            signals.seconds(wrong)


def _start(code: str, *arguments: object) -> subprocess.Popen:
    """A process that listens, says so and runs `code`."""
    code = "from nemo_amft.parallel import signals\nsignals.listen()\nprint('ready', flush=True)\n" + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_during_the_imports_kills_nothing_and_is_kept(number):
    process = _start("import numpy, torch; signals._asked.wait(30); print(signals._asked.is_set())")
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "True\n"), error


def test_a_library_that_unblocks_a_signal_does_no_harm():
    process = _start("""
        from multiprocessing import resource_tracker
        import signal
        resource_tracker.ensure_running()
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # what this test is about
        print("unblocked", flush=True)
        print(signals._asked.wait(30))
    """)
    process.stdout.readline()
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "True\n"), error


def test_children_do_not_hear_what_slurm_sends_to_every_process_of_a_step():
    process = _start("""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1)"], stdout=-1)
        child.stdout.readline()
        child.send_signal(10)
        print(child.wait())
    """)
    assert process.communicate(timeout=60)[0] == "0\n"


def test_stacks_are_printed_on_request_and_the_run_goes_on():
    process = _start("""
        import time

        def waits_for_another_rank():
            print("waiting", flush=True)
            time.sleep(1)

        waits_for_another_rank()
        print("done")
    """)
    process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "done\n")
    assert "waits_for_another_rank" in error


WAITS_IN_C = """
    import pathlib, sys, time
    from nemo_amft.parallel import failures
    with failures.shown_once(pathlib.Path(sys.argv[1]), 3):
        print("up", flush=True)
        time.sleep(float(sys.argv[2]))  # as in a collective: no Python code of the main thread runs
    print("went on")
"""


def test_sigterm_after_another_ranks_failure_ends_a_rank_at_once_and_in_silence(tmp_path):
    (tmp_path / "failure.txt").write_text("nemo_amft: rank 0 failed\n")
    process = _start(WAITS_IN_C, tmp_path, 60)
    process.stdout.readline()
    process.terminate()
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (1, "", "")


def test_sigterm_without_a_failure_is_a_request(tmp_path):
    process = _start(WAITS_IN_C, tmp_path, 1)
    process.stdout.readline()
    process.terminate()
    assert process.communicate(timeout=60)[0] == "went on\n"


def test_a_second_sigterm_ends_a_rank_that_waits_for_a_dead_one_and_shows_where(tmp_path):
    process = _start("signals.APART_S = 0.5\n" + textwrap.dedent(WAITS_IN_C), tmp_path, 60)
    process.stdout.readline()
    process.terminate()
    time.sleep(0.1)
    process.terminate()  # passed on by a launcher: the same request
    time.sleep(0.6)
    assert process.poll() is None
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error.startswith("nemo_amft: SIGTERM: stopping at the next step boundary\n--- stacks of process")


def test_when_one_rank_hangs_the_others_show_their_stacks_too(tmp_path):
    hangs = _start(
        """
        import pathlib, sys, time
        from nemo_amft.observe.timers import PhaseTimers
        from nemo_amft.parallel import failures
        with failures.shown_once(pathlib.Path(sys.argv[1]), 0), PhaseTimers(0.3)("rollout"):
            time.sleep(50)
        """,
        tmp_path,
    )
    waits = _start(WAITS_IN_C, tmp_path, 60)
    _, error = hangs.communicate(timeout=60)
    assert hangs.returncode == 1
    assert error.startswith("nemo_amft: hung: rank 0: phase rollout has lasted longer than 0.3 s\n--- stacks of rank 0\n")
    waits.stdout.readline()
    waits.terminate()  # as srun and torchrun do
    _, error = waits.communicate(timeout=30)
    assert waits.returncode == 1
    assert error.startswith("--- stacks of rank 3\n")


SLURM_TASK = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "gpu-b[08-11,20]-ib,gpu-c1", "SLURM_STEP_NODELIST": "gpu-b[09,11]-ib",
}  # fmt: skip


def test_a_task_of_srun_knows_its_place_and_where_to_meet():
    found = slurm.environment(SLURM_TASK)
    port = found.pop("MASTER_PORT")
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu-b09-ib"}
    assert slurm.environment({**SLURM_TASK, "SLURM_RESTART_COUNT": "1"})["MASTER_PORT"] != port
    assert slurm.environment({**SLURM_TASK, "MASTER_PORT": "1234"}).get("MASTER_PORT") is None  # the user's stays


def test_torchrun_inside_a_slurm_allocation_has_the_say():
    assert slurm.environment({**SLURM_TASK, "RANK": "0"}) == {}
    assert slurm.environment({}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[1-2]", "node1"),
        ("n[007,9]", "n007"),
        ("r[1-2]n[05-06],x", "r1n05"),
        ("a-[3]-b.c", "a-3-b.c"),
    ],
)
def test_first_host_of_slurms_notation(nodes, first):
    assert slurm.first_host(nodes) == first


def test_ports_of_jobs_that_follow_each_other_and_of_their_restarts_differ():
    ports = [slurm.port(job, restart) for job in range(1, 1000) for restart in range(17)]
    assert len(set(ports)) == len(ports)
    assert min(ports) > 1024
    assert max(ports) < 32768
