"""What befalls a run, and how it may end then. Each raises Loss where the run does something else."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_amft.models.checkpoints import damage
from tests.soak.jobs import RANKS, ForkedJob, Job

STOPPED = 75
END_S = 900.0
"""A job that was told to end and has not by then hangs."""
UNHEARD_S = 1.0
"""A process that old may not listen to signals yet."""


class Loss(AssertionError):
    """Something is lost: a number, a step, a job that does not end, a word that should have been said."""


@dataclass
class Scene:
    """A run that goes on."""

    job: Job
    run_dir: Path
    arguments: list[str]
    draw: random.Random
    room: Room


class Room:
    """The file system that the runs lie on: a small one where it may be mounted, else one that cannot be filled."""

    def __init__(self, folder: Path, mounted: bool):
        self.folder, self.mounted = folder, mounted
        self._ballast = folder / "ballast"

    def fill(self, leave: int) -> None:
        """Leave so many bytes."""
        with contextlib.suppress(OSError), self._ballast.open("wb") as file:
            file.write(b"\0" * max(0, shutil.disk_usage(self.folder).free - leave))

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)


Event = Callable[[Scene], str]
"""Returns what it did, in a few words."""


def _ended(scene: Scene) -> list[int]:
    statuses = scene.job.wait(END_S)
    if statuses is None:
        for number in (signal.SIGUSR2,):
            scene.job.send(number, range(RANKS))
        time.sleep(2)
        scene.job.kill()
        raise Loss(f"the job has not ended within {END_S:g} s")
    return statuses


def _kill(scene: Scene, ranks: list[int]) -> str:
    if len(ranks) == RANKS:
        scene.job.kill()
    else:
        scene.job.send(signal.SIGKILL, ranks)
    _ended(scene)
    return f"SIGKILL {ranks}"


def kill_all(scene: Scene) -> str:
    return _kill(scene, list(range(RANKS)))


def kill_one(scene: Scene) -> str:
    return _kill(scene, [scene.draw.randrange(RANKS)])


def _ask(scene: Scene, number: signal.Signals, ranks: list[int]) -> str:
    early = time.monotonic() - scene.job.began < UNHEARD_S
    scene.job.send(number, ranks)
    statuses = _ended(scene)
    fine = all(status in (0, STOPPED) for status in statuses) or (len(statuses) == 1 and statuses[0] in (0, 1))
    if not fine and not early:
        raise Loss(f"{number.name} to {ranks}: the ranks ended with {statuses}, expected 0 or {STOPPED}")
    return f"{number.name} {ranks} -> {statuses}"


def ask(scene: Scene) -> str:
    number = scene.draw.choice((signal.SIGTERM, signal.SIGUSR1))
    return _ask(scene, number, scene.draw.choice(([0], [1], [0, 1])))


def ask_and_kill(scene: Scene) -> str:
    """As Slurm does: the time for a save is over before it is."""
    scene.job.send(signal.SIGTERM, range(RANKS))
    time.sleep(scene.draw.uniform(0.0, 1.5))
    scene.job.kill()
    _ended(scene)
    return "SIGTERM, SIGKILL"


def fill_disk(scene: Scene) -> str:
    """Until the job ends of it, or is done without the room."""
    if scene.room.mounted and scene.draw.random() < 0.7:
        leave = scene.draw.choice((0, 1000, 50_000, 300_000))
        scene.room.fill(leave)
        how = f"{leave} bytes left"
    else:
        leave = scene.draw.choice((40_000, 100_000, 150_000))  # room for the words on stderr, a file too
        scene.job.limit_files(leave)
        how = f"no file above {leave} bytes"
    try:
        statuses = _ended(scene)
    finally:
        scene.room.clear()
    said = [
        words
        for words in ("No space left", "no space", "File too large", "bytes free", "is free")
        if words in scene.job.words()
    ]
    if any(statuses) and not said:
        raise Loss(f"{how}: ended with {statuses}, and does not say that there was no room")
    if any(status not in (0, 1, 2, -signal.SIGTERM, -signal.SIGKILL) for status in statuses):
        raise Loss(f"{how}: ended with {statuses}")
    return f"{how} -> {statuses}"


def start_second(scene: Scene) -> str:
    """The same command while the run lives: refused, and the first goes on as if nothing had been."""
    second = ForkedJob(scene.arguments, scene.job.log.with_suffix(".second"))
    statuses = second.wait(END_S)
    first_ended = scene.job.statuses() is not None
    words = second.words()
    second.kill()
    if statuses is None:
        raise Loss("the second job hangs")
    if not first_ended and (statuses != [2] * RANKS or "found a run in this folder" not in words):
        raise Loss(f"the second job ended with {statuses}, expected to be refused:\n{words[-2000:]}")
    return f"second start -> {statuses}"


def corrupt(scene: Scene) -> str:
    """Kill it, and change bytes of the newest checkpoint: it has to be noticed, and the one before taken."""
    kill_all(scene)
    newest = max((scene.run_dir / "checkpoints").glob("step_*"), default=None)
    if newest is None:
        return "SIGKILL, no checkpoint yet"
    files = sorted(file for file in newest.rglob("*") if file.is_file())
    file = scene.draw.choice(files)
    content = bytearray(file.read_bytes())
    way = scene.draw.choice(("flip", "cut", "gone", "empty"))
    if way == "flip" and content:
        content[scene.draw.randrange(len(content))] ^= 1 << scene.draw.randrange(8)
    elif way == "cut":
        del content[scene.draw.randrange(len(content)) :]
    elif way == "empty":
        content.clear()
    file.unlink()
    if way != "gone":
        file.write_bytes(content)
    return f"{way}: {newest.name}/{file.relative_to(newest)}" + ("" if damage(newest) else ", of no consequence")


EVENTS: dict[str, Event] = {
    "SIGKILL to all": kill_all,
    "SIGKILL to one": kill_one,
    "SIGTERM or SIGUSR1": ask,
    "SIGTERM, then SIGKILL": ask_and_kill,
    "disk full": fill_disk,
    "second start": start_second,
    "damaged checkpoint": corrupt,
}
