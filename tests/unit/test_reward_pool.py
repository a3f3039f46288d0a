import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import Verdict
from tests.unit.reward_verifiers import obey

RIGHT, WRONG = ("a", "a", True), ("a", "b", True)


@pytest.fixture(scope="module")
def pool():
    with RewardPool(obey, workers=2, timeout_s=1.0, memory_mb=256) as running:
        running.score([RIGHT])  # children have started, so that tests time the verifier alone
        yield running


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_verdicts_come_in_the_order_of_the_items(pool):
    items = [(str(index), str(index if index % 3 else -1), True) for index in range(1000)]
    assert [verdict.correct for verdict in pool.score(items)] == [index % 3 != 0 for index in range(1000)]


def test_no_items_give_no_verdicts(pool):
    assert pool.score([]) == []


def test_text_and_the_finished_flag_arrive_as_they_are(pool):
    for text in ("é\U0001f600\n\0", "lone surrogate \ud800", "x" * 1_000_000):
        assert pool.score([(text, text, False)]) == [Verdict(1.0, True, "ok", "cut")]


@pytest.mark.parametrize("word", ["hang", "hang_in_c", "ignore_signals"])
def test_a_hang_is_killed_on_time_and_costs_no_other_item_its_verdict(pool, word):
    start = time.monotonic()
    verdicts = pool.score([RIGHT] * 20 + [("a", word, True)] + [RIGHT] * 20)
    assert 1.0 <= time.monotonic() - start < 2.5
    assert verdicts.pop(20) == Verdict(0.0, False, "timeout", "killed after 1 s")
    assert verdicts == [Verdict(1.0, True)] * 40


def test_the_time_limit_is_for_an_item_and_not_for_a_message():
    with RewardPool(obey, workers=1, timeout_s=0.5, memory_mb=256) as pool:
        statuses = [verdict.status for verdict in pool.score([("a", "hang", True)] * 3 + [RIGHT])]
    assert statuses == ["timeout"] * 3 + ["ok"]


@pytest.mark.parametrize("response", ["allocate 10000", "grow"])
def test_a_memory_bomb_is_an_error_and_stays_within_its_allowance(pool, response):
    verdicts = pool.score([("a", response, True), RIGHT])
    assert (verdicts[0].reward, verdicts[0].status) == (0.0, "error")
    assert "MemoryError" in verdicts[0].detail
    assert verdicts[1].correct


def test_memory_within_the_allowance_is_granted(pool):
    assert pool.score([("a", "allocate 100", True)])[0].status == "ok"


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("crash", "the verifier's process was ended by SIGSEGV"),
        ("kill", "the verifier's process was ended by SIGKILL"),
        ("exit_at_once 3", "the verifier's process ended with status 3: last words"),
        ("exit 3", "SystemExit: 3"),
        ("raise", "ValueError: two"),
        ("close", "the verifier's process closed its pipe"),
        ("reward nan", "ValueError: the reward is nan, expected a finite number"),
        ("reward inf", "ValueError: the reward is inf, expected a finite number"),
        ("wrong_type", "AttributeError: 'NoneType' object has no attribute 'reward'"),
    ],
)
def test_a_crash_is_an_error_that_says_why(pool, response, detail):
    verdicts = pool.score([RIGHT, ("a", response, True), WRONG, RIGHT])
    assert verdicts[1] == Verdict(0.0, False, "error", detail)
    assert [verdict.correct for verdict in (verdicts[0], *verdicts[2:])] == [True, False, True]


def test_what_a_verifier_prints_does_not_disturb_the_replies(pool):
    assert [verdict.correct for verdict in pool.score([("print", "print", True), RIGHT])] == [True, True]


def test_a_child_that_died_between_two_calls_is_replaced_without_blame(pool):
    for verdict in pool.score([("a", "pid", True)] * 8):
        if alive(int(verdict.detail)):
            os.kill(int(verdict.detail), signal.SIGKILL)
    time.sleep(0.2)
    assert pool.score([RIGHT] * 8) == [Verdict(1.0, True)] * 8


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_that_a_scheduler_sends_to_the_whole_job_are_left_to_the_parent(pool, number):
    pid = int(pool.score([("a", "pid", True)])[0].detail)
    os.kill(pid, number)
    time.sleep(0.1)
    assert alive(pid)


def test_killing_a_hang_kills_what_it_started(pool, tmp_path):
    file = tmp_path / "pid"
    assert pool.score([("a", f"spawn {file}", True)])[0].status == "timeout"
    assert wait_until_dead(int(file.read_text()), 2.0)


def test_children_get_neither_sockets_nor_heavy_libraries_of_the_parent():
    with socket.socket() as listening:
        listening.set_inheritable(False)
        with RewardPool(obey, workers=1, timeout_s=5.0, memory_mb=256) as pool:
            assert pool.score([("a", "environment", True)])[0].detail == "([], [])"


def test_close_leaves_no_process():
    with RewardPool(obey, workers=2, timeout_s=1.0, memory_mb=256) as pool:
        pids = {int(verdict.detail) for verdict in pool.score([("a", "pid", True)] * 64)}
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("response", ["pid", "hang_in_c"])
def test_children_die_when_the_parent_is_killed(response):
    """Idle ones see their input end; busy ones, even in C code, are ended by their own timer."""
    code = f"""
        import os, threading
        from nemo_amft.tasks.rewards import RewardPool
        from tests.unit.reward_verifiers import obey
        pool = RewardPool(obey, workers=1, timeout_s=0.5, memory_mb=256)
        print(pool.score([("a", "pid", True)])[0].detail, flush=True)
        threading.Timer(0.2, os.kill, (os.getpid(), 9)).start()
        pool.score([("a", {response!r}, True)])
        threading.Event().wait()
    """
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=root, capture_output=True, text=True, timeout=60)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    assert wait_until_dead(int(parent.stdout), 4.0)


def test_a_verifier_of_a_plug_in_file_works_although_no_module_path_leads_to_it(tmp_path, monkeypatch):
    import importlib.util

    file = tmp_path / "mine.py"
    file.write_text(
        "from nemo_amft.types import Verdict\n"
        "def verify(answer, response, finished):\n"
        "    return Verdict(0.5, answer == response)\n"
    )
    spec = importlib.util.spec_from_file_location("nemo_amft_plugin_mine_12345678", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with RewardPool(module.verify, workers=1, timeout_s=1.0, memory_mb=256) as pool:
        assert pool.score([RIGHT]) == [Verdict(0.5, True)]


def test_a_verifier_that_children_cannot_load_is_reported_and_not_retried(monkeypatch):
    monkeypatch.setattr(obey, "__module__", "tests.unit.reward_verifiers")
    with RewardPool(obey, workers=1, timeout_s=1.0, memory_mb=256) as pool:
        pool._hello = pool._hello.replace(b"reward_verifiers", b"reward_verifierz")
        pool._kill_all()
        with pytest.raises(RuntimeError, match="could not load the verifier: ModuleNotFoundError: No module named"):
            pool.score([RIGHT])


def test_ten_thousand_verdicts_take_less_than_a_minute(pool):
    start = time.monotonic()
    assert all(verdict.correct for verdict in pool.score([RIGHT] * 10_000))
    assert time.monotonic() - start < 30
