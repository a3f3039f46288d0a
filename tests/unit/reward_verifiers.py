"""Verifiers that misbehave in the way their response asks for; a module of its own, as child processes import it."""

import os
import signal
import subprocess
import sys
import time

from nemo_amft.types import Verdict


def obey(answer: str, response: str, finished: bool) -> Verdict:
    word, _, argument = response.partition(" ")
    if word == "hang":
        time.sleep(1000)
    elif word == "hang_in_c":
        # Holds the interpreter's lock inside one C call: no thread, exception or Python signal handler gets a turn.
        sum(range(10**12))
    elif word == "ignore_signals":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(1000)
    elif word == "allocate":
        bytearray(int(argument) * 2**20)
    elif word == "grow":
        hoard = []
        while True:
            hoard.append(bytearray(2**20))
    elif word == "exit":
        sys.exit(int(argument))
    elif word == "exit_at_once":
        print("last words", file=sys.stderr, flush=True)
        os._exit(int(argument))
    elif word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "close":
        os.closerange(0, 100)
        time.sleep(1000)
    elif word == "raise":
        raise ValueError("two\nlines")
    elif word == "print":
        print("noise " * 10_000)
        sys.stdout.flush()
    elif word == "reward":
        return Verdict(float(argument), True)
    elif word == "wrong_type":
        return None
    elif word == "spawn":
        child = subprocess.Popen(["sleep", "1000"])
        with open(argument, "w") as file:
            file.write(str(child.pid))
        time.sleep(1000)
    elif word == "pid":
        return Verdict(1.0, True, detail=str(os.getpid()))
    elif word == "environment":
        loaded = sorted({"torch", "vllm", "transformers", "datasets"} & set(sys.modules))
        descriptors = [
            os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        return Verdict(0.0, False, detail=repr((loaded, [name for name in descriptors if name.startswith("socket")])))
    return Verdict(float(answer == response), answer == response, detail="" if finished else "cut")


def grade_thoughts(answer: str, response: str, finished: bool) -> Verdict:
    """Right is the answer, in a box or not, after thoughts that are closed."""
    thoughts, _, text = response.rpartition("</think>")
    right = text.strip() in (answer, f"\\boxed{{{answer}}}") and thoughts.count("<think>") == response.count("</think>")
    return Verdict(float(right), right, detail="" if right else "wrong")


def both_turns(answer: str, turns: list[str], finished: bool) -> Verdict:
    """Right is "#1", then the answer."""
    return Verdict(float(turns == ["#1", answer]), turns == ["#1", answer])
