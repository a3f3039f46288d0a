"""Seconds of phases, and the watchdog."""

import subprocess
import sys
import textwrap
import time

import pytest

from nemo_amft.observe import timers as module
from nemo_amft.observe.timers import PhaseTimers


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by `clock.now += s` only."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_seconds_add_up_over_a_step_and_start_over(clock):
    timers = PhaseTimers()
    for seconds in (1.0, 2.0):
        with timers("sft"):
            clock.now += seconds
    assert timers.collect() == {"seconds/sft": 3.0}
    assert timers.collect() == {}


def test_a_nested_phase_has_its_own_name_and_counts_in_the_outer_one(clock):
    timers = PhaseTimers()
    with timers("validation"):
        clock.now += 1.0
        with timers("rollout"):
            assert timers.current == "validation/rollout"
            clock.now += 2.0
        assert timers.current == "validation"
    assert timers.current is None
    assert timers.collect() == {"seconds/validation": 3.0, "seconds/validation/rollout": 2.0}


def test_a_rate_is_over_the_seconds_of_all_named_phases(clock):
    timers = PhaseTimers()
    for phase, seconds in {"sft": 1.0, "rl": 3.0, "rollout": 5.0}.items():
        with timers(phase):
            clock.now += seconds
    assert timers.per_second(100, "sft", "rl", "value") == 25.0
    assert timers.per_second(100, "value") == 0.0


def test_the_device_is_waited_for_before_each_reading(monkeypatch):
    calls = []
    monkeypatch.setattr(module.platform, "synchronize", lambda: calls.append("synchronize"))
    with PhaseTimers()("rl"):
        calls.append("work")
    assert calls == ["synchronize", "work", "synchronize"]


def test_an_error_says_in_which_phase_it_happened():
    timers = PhaseTimers()
    with pytest.raises(RuntimeError) as error, timers("validation"), timers("reward"):
        raise RuntimeError("no verifier")
    assert error.value.__notes__ == ["in phase validation/reward"]
    assert timers.current is None


def _run(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)


def test_a_phase_that_hangs_is_ended_with_every_stack_on_stderr():
    done = _run("""
        import time
        from nemo_amft.observe.timers import PhaseTimers

        def waits_for_a_rank_that_is_gone():
            time.sleep(50)

        timers = PhaseTimers(timeout_s=0.3)
        with timers("rollout"):
            with timers("decode"):  # leaving an inner phase must not disarm the outer one
                pass
            waits_for_a_rank_that_is_gone()
    """)
    assert done.returncode == 1
    assert "waits_for_a_rank_that_is_gone" in done.stderr


def test_time_between_phases_is_not_watched():
    done = _run("""
        import time
        from nemo_amft.observe.timers import PhaseTimers

        timers = PhaseTimers(timeout_s=0.3)
        with timers("rollout"):
            pass
        time.sleep(0.6)
        print("alive")
    """)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_real_time_is_measured():
    timers = PhaseTimers()
    with timers("sft"):
        time.sleep(0.02)
    assert timers.collect()["seconds/sft"] >= 0.02
