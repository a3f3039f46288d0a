"""run.lock: which job owns a run directory. Two jobs that write into one would mix their metrics and delete each other's
checkpoints.

Rank 0 takes the lock before anything in the folder is touched, keeps its modification time fresh, and removes it at the end. A
lock that a dead job left is taken over, with a word:

    the process is gone, on this machine        at once
    the same Slurm job, requeued                at once
    nothing is known of its process             once its time has stood still for DEAD_S seconds

Whoever finds the lock of a job that lives is refused, and has changed nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_amft.config import launcher
from nemo_amft.types import UserError

FILE_NAME = "run.lock"
BEAT_S = 5.0
"""Seconds between two signs of life."""
DEAD_S = 60.0
"""Seconds without one after which an owner counts as dead: the machine may be busy, or its file system slow."""
FORGOTTEN_S = 3600.0
"""A lock that is older by the clock is not watched first. Clocks of a cluster differ by less."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    token: str
    """Unlike that of any other holder."""
    launch: str
    """The same on all ranks of one launch."""
    host: str
    machine: str
    """The boot and the process namespace that `pid` counts in."""
    pid: int
    born: int
    """When the process started, in ticks since the boot: process ids are used again."""
    job_id: str
    restart_count: int

    def __str__(self) -> str:
        job = f", Slurm job {self.job_id}" if self.job_id else ""
        return f"process {self.pid} on {self.host}{job}"


_held: list[tuple[Path, Owner]] = []


def hold(run_dir: Path) -> None:
    """Own `run_dir` until `release`. Every rank calls this before it touches the folder: rank 0 takes the lock, the others look
    whether they may go on.

    Raises UserError if another job that lives has it, or if the folder cannot be written to.
    """
    path, me = run_dir / FILE_NAME, _me()
    if launcher.rank() != 0:
        _await_free(path, me)
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        while not _take(path, me, _await_free(path, me)):
            pass
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written to: {error.strerror}; expected a folder for the run") from None
    _held[:] = [(path, me)]
    atexit.register(release)
    threading.Thread(target=_beat, args=(path, me), name="run.lock", daemon=True).start()


def release() -> None:
    """Give the folder back; does nothing where it is not held."""
    while _held:
        path, me = _held.pop()
        with contextlib.suppress(OSError):
            if _read(path).token == me.token:
                path.unlink()


def _take(path: Path, me: Owner, dead: Owner | None) -> bool:
    """Put our lock where there is none, or in place of `dead`'s. False if somebody else was faster."""
    part = path.with_name(f".{FILE_NAME}.{me.token}")
    part.write_text(json.dumps(asdict(me)) + "\n", encoding="utf-8")
    try:
        if dead is None:
            os.link(part, path)  # fails where there is one, and shows no half of it to others
            return True
        if _read(path).token != dead.token:
            return False
        print(f"{path}: taking over from {dead}, which is gone", file=sys.stderr, flush=True)
        os.replace(part, path)
    except FileExistsError:
        return False
    except (PermissionError, NotImplementedError):  # a file system without links
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    time.sleep(0.2)  # two may replace a dead one's at the same time: the later stays
    return _read(path).token == me.token


def _await_free(path: Path, me: Owner) -> Owner | None:
    """The dead owner of the lock; None if there is no lock, or if our own launch has it. Raises UserError for a live owner."""
    seen, since = None, time.monotonic()
    while True:
        try:
            beat, owner = path.stat().st_mtime_ns, _read(path)
        except FileNotFoundError:
            return None
        if owner.launch == me.launch:
            return owner if owner.token != me.token and launcher.rank() == 0 else None
        lives = _lives(owner, me, time.time() - beat / 1e9)
        if lives is False:
            return owner
        if lives or (seen is not None and seen != (beat, owner.token)):
            raise UserError(
                f"{path}: found a run in this folder by {owner}, expected none: wait for its end, or give this run a folder of "
                "its own (exp_manager.name, exp_manager.explicit_log_dir)"
            )
        if seen is None:
            seen = (beat, owner.token)
            if launcher.rank() == 0:
                text = f"{path}: held by {owner}; looking for up to {DEAD_S:.0f} s whether that still runs"
                print(text, file=sys.stderr, flush=True)
        if time.monotonic() - since > DEAD_S:
            return owner
        time.sleep(0.5)


def _lives(owner: Owner, me: Owner, age_s: float) -> bool | None:
    """Whether the owner's process is there; None where that cannot be seen from here."""
    if owner.machine and owner.machine == me.machine:
        return _born(owner.pid) == owner.born
    if owner.job_id and owner.job_id == me.job_id and owner.restart_count < me.restart_count:
        return False
    return False if age_s > FORGOTTEN_S else None


def _beat(path: Path, me: Owner) -> None:
    """Keep the lock fresh while it is held. Where it is gone or another's, so is the folder: end before harm is done."""
    while _held:
        time.sleep(BEAT_S)
        try:
            found = _read(path)
            if found.token == me.token:
                os.utime(path)
                continue
            fault = f"taken over by {found}"
        except FileNotFoundError:
            fault = "removed"
        except OSError:
            continue  # a file system that does not answer now
        if _held:
            print(f"nemo_amft: error: {path} was {fault}: this run has lost its folder and ends", file=sys.stderr, flush=True)
            os._exit(1)


def _read(path: Path) -> Owner:
    """Raises OSError. A file that is no lock of ours is somebody's of whom nothing is known."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return Owner("?", "?", "an unknown host", "", 0, 0, "", 0)


def _me() -> Owner:
    environment = os.environ
    job = environment.get("SLURM_JOB_ID", "")
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
             "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
    launch = "/".join(environment.get(name, "") for name in names) if launcher.processes_started()[0] > 1 else uuid.uuid4().hex
    restarts = int(environment.get("SLURM_RESTART_COUNT") or 0)
    pid = os.getpid()
    return Owner(uuid.uuid4().hex, launch, socket.gethostname(), _machine(), pid, _born(pid) or 0, job, restarts)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> int | None:
    """The start time of a process that lives, in ticks since the boot (proc(5), field 22 of stat); None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
