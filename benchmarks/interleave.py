"""Several programs that take turns: each is started once and then runs a few steps whenever it is told to.

Programs that are compared live in processes of their own, as each wants its own environment, threads and ranks. Only one
computes at a time, the others wait in a read; a disturbance of the machine then falls on all alike, and what is compared are
turns that followed one another. Standard library only, because the workers of both environments import it.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S, TURN_TIMEOUT_S = 300.0, 300.0


class Channel:
    """A worker's end. Make it before anything is imported that prints: from then on stdout is stderr, for everybody else."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        self._in = os.fdopen(os.dup(0))
        os.dup2(2, 1)

    def wait(self) -> int:
        """Say that the last turn is done and wait for the next; returns its number of steps, 0 for the end."""
        line = self._in.readline()
        return int(line) if line.strip() else 0

    def reply(self, counts: dict[str, float], seconds: dict[str, float], **about: object) -> None:
        """What was done since the last reply. `counts` are summed over ranks; `seconds` by phase are rank 0's."""
        self._out.write(json.dumps({"counts": counts, "seconds": seconds, **about}) + "\n")

    def serve(self, step: Callable[[], dict[str, float]], phases: Callable[[], dict[str, float]], **about: object) -> None:
        """Answer turns until the end. `step` returns counts; `phases` the seconds by phase since it was last asked."""
        self.reply({}, {}, **about)
        while steps := self.wait():
            phases()
            counts: dict[str, float] = {}
            for _ in range(steps):
                for name, value in step().items():
                    counts[name] = counts.get(name, 0) + value
            self.reply(counts, phases())


@dataclass(frozen=True)
class Turn:
    """Some steps of one program, in a row."""

    wall: float
    """Seconds from the command to the last rank's answer."""
    counts: dict[str, float]
    """Work done, summed over ranks."""
    seconds: dict[str, float]
    """By phase, as rank 0 saw it."""
    cpu: float
    """Processor seconds of all ranks. Far below `wall` times the cores, other work had the machine, or ranks waited."""
    load: float
    """The machine's one-minute load average before the turn."""

    def rate(self, unit: str) -> float:
        """`unit` a second."""
        return self.counts[unit] / self.wall


@dataclass
class Program:
    """`command`, run as `processes` ranks of `threads` threads each, by torch.distributed's environment variables."""

    name: str
    family: str
    command: Sequence[str]
    processes: int = 1
    threads: int = 1
    env: dict[str, str] = field(default_factory=dict)
    about: dict[str, object] = field(default_factory=dict, init=False)
    """What the worker says of itself when it is ready."""
    _ranks: list[subprocess.Popen] = field(default_factory=list, init=False, repr=False)

    def start(self, logs: Path) -> None:
        """Start all ranks and wait until they are ready. Raises RuntimeError with the end of their log."""
        self._log = logs / f"{self.name.replace(' ', '_')}.log"
        shared = os.environ | self.env | {"OMP_NUM_THREADS": str(self.threads)}
        if self.processes > 1:
            shared |= {"WORLD_SIZE": str(self.processes)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        for rank in range(self.processes):
            own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.processes > 1 else {})
            with self._log.open("a") as log:
                process = subprocess.Popen(
                    self.command, env=own, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
                )
            self._ranks.append(process)
        self.about = self._answers(START_TIMEOUT_S)[0]

    def turn(self, steps: int) -> Turn:
        """Run `steps` steps."""
        load, cpu, started = os.getloadavg()[0], self._cpu_seconds(), time.perf_counter()
        for rank in self._ranks:
            rank.stdin.write(f"{steps}\n")
            rank.stdin.flush()
        answers = self._answers(TURN_TIMEOUT_S)
        wall = time.perf_counter() - started
        counts = {name: sum(answer["counts"][name] for answer in answers) for name in answers[0]["counts"]}
        return Turn(wall, counts, answers[0]["seconds"], self._cpu_seconds() - cpu, load)

    def close(self) -> None:
        """Let the workers end, and end those that do not."""
        for rank in self._ranks:
            rank.stdin.close()
        for rank in self._ranks:
            try:
                rank.wait(15)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()
        self._ranks.clear()

    def _cpu_seconds(self) -> float:
        fields = [Path(f"/proc/{rank.pid}/stat").read_text().rpartition(")")[2].split() for rank in self._ranks]
        return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")

    def _answers(self, timeout: float) -> list[dict]:
        watchdog = threading.Timer(timeout, lambda: [rank.kill() for rank in self._ranks])
        watchdog.start()
        try:
            lines = [rank.stdout.readline() for rank in self._ranks]
        finally:
            watchdog.cancel()
        if not all(lines):
            for rank in self._ranks:
                rank.kill()
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])
            raise RuntimeError(f"{self.name}: ended, or gave no answer within {timeout:.0f} s\n{tail}")
        return [json.loads(line) for line in lines]


def shortlist(programs: Sequence[Program], logs: Path, unit: str, steps: int, near: float = 1.1) -> list[Program]:
    """Start each program in turn, warm it up and time it once; keep each family's fastest and whatever is `near` it.

    What is dropped is closed at once, so that no more programs are in memory than may still win.
    """
    families = [program.family for program in programs]
    kept: dict[str, list[tuple[float, Program]]] = {}
    for program in programs:
        program.start(logs)
        warm_up = program.turn(min(steps, 2))
        # Nothing to choose from: its first turn is not spent on a choice.
        rate = (program.turn(steps) if families.count(program.family) > 1 else warm_up).rate(unit)
        program.about["first_rate"] = rate
        print(f"  {program.name:<44}{rate:10.1f} {unit}/s", file=sys.stderr, flush=True)
        mine = kept.setdefault(program.family, [])
        mine.append((rate, program))
        best = max(rate for rate, _ in mine)
        for slow in [entry for entry in mine if entry[0] * near < best]:
            mine.remove(slow)
            slow[1].close()
    return [program for mine in kept.values() for _, program in mine]


def take_turns(programs: Sequence[Program], rounds: int, steps: int) -> dict[str, list[Turn]]:
    """`rounds` times a turn of `steps` steps of each program: turns by name, in order."""
    turns: dict[str, list[Turn]] = {program.name: [] for program in programs}
    for _ in range(rounds):
        for program in programs:
            turns[program.name].append(program.turn(steps))
    return turns


def median_rate(turns: Sequence[Turn], unit: str) -> float:
    return statistics.median(turn.rate(unit) for turn in turns)


def ratios(ours: Sequence[Turn], theirs: Sequence[Turn], unit: str) -> list[float]:
    """Our rate over theirs, round by round."""
    return [a.rate(unit) / b.rate(unit) for a, b in zip(ours, theirs, strict=True)]


def fastest(programs: Sequence[Program], turns: dict[str, list[Turn]], unit: str) -> dict[str, str]:
    """Name of each family's program with the highest median rate."""
    names = {program.family: [p.name for p in programs if p.family == program.family] for program in programs}
    return {family: max(members, key=lambda name: median_rate(turns[name], unit)) for family, members in names.items()}


def table(programs: Sequence[Program], turns: dict[str, list[Turn]], unit: str, per: str) -> str:
    """A row a program: median rate, its range, milliseconds of each phase and of processor time a `per`, our best over it."""
    best = fastest(programs, turns, unit)
    ours = turns[best[programs[0].family]]
    phases = list(dict.fromkeys(name for program in programs for name in turns[program.name][0].seconds))
    head = (
        f"{'':<44}{unit + '/s':>12}{'range':>18}" + "".join(f"{name:>12}" for name in phases) + f"{'cpu':>10}{'ours/this':>11}"
    )
    rows = [head + f"     (phases: ms a {per.removesuffix('s')})"]
    for program in programs:
        mine = turns[program.name]
        rates = [turn.rate(unit) for turn in mine]
        spent = [statistics.median(1e3 * t.seconds.get(name, 0.0) / t.counts[per] for t in mine) for name in phases]
        mark = " *" if program.name in best.values() else "  "
        rows.append(
            f"{program.name + mark:<44}{statistics.median(rates):12.1f}{f'{min(rates):.1f}-{max(rates):.1f}':>18}"
            + "".join(f"{value:12.3f}" for value in spent)
            + f"{statistics.median(1e3 * t.cpu / t.counts[per] for t in mine):12.3f}"
            + f"{statistics.median(ratios(ours, mine, unit)):12.2f}"
        )
    return "\n".join(rows)


def as_json(programs: Sequence[Program], turns: dict[str, list[Turn]], unit: str) -> dict:
    """All that was measured, and the median ratios of the fastest of each family."""
    best = fastest(programs, turns, unit)
    ours = best[programs[0].family]
    found = {
        family: {"program": name, "median_ratio": statistics.median(ratios(turns[ours], turns[name], unit))}
        for family, name in best.items()
    }
    return {
        "unit": f"{unit}/s",
        "fastest": found,
        "programs": {
            program.name: {
                "family": program.family,
                "processes": program.processes,
                "threads": program.threads,
                "about": program.about,
                "median_rate": median_rate(turns[program.name], unit),
                "turns": [vars(turn) for turn in turns[program.name]],
            }
            for program in programs
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
