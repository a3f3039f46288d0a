"""`make soak MINUTES=n SEED=s`: tiny runs, disturbed at random moments and continued, come to what they come to undisturbed.

A story is one run with one to four events, each of them and its moment drawn from SEED and the story's number, and the
continuation to the end after them. What counts as a loss: a number, a weight or an optimiser's state that is not the
undisturbed run's; more steps made again than since the newest intact checkpoint, or any after a stop that was asked for; a job
that does not end, or ends otherwise than it should.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from nemo_amft.models.checkpoints import damage
from nemo_amft.observe.summary import git_revision
from tests.soak import events, moments
from tests.soak.cases import CASES, Case, Finished
from tests.soak.events import Loss, Room, Scene
from tests.soak.jobs import ForkedJob, Job, TorchrunJob

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
ROOM_MB = 256
TORCHRUN_SHARE = 0.04
"""Of starts: by torchrun itself, whose imports take twenty seconds."""
FINISH_S = 1800.0


class Soak:
    """One sitting."""

    def __init__(self, minutes: float, seed: int, only: str):
        self.minutes, self.seed = minutes, seed
        self.revision = git_revision()  # of what is run, whatever is committed meanwhile
        self.cases = [case for case in CASES if only in str(case)]
        self.counts: Counter[str] = Counter()
        self.by_event: Counter[str] = Counter()
        self.by_case: Counter[str] = Counter()
        self.losses: list[dict[str, Any]] = []
        self.references: dict[Case, tuple[Finished, float]] = {}
        self.before: str | None = None
        """The newest intact checkpoint when the job at hand was started."""
        self.promised: list[bytes] = []
        """Records of a job that was asked to stop and did: no step of these is made again."""

    def run(self, first: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        mounted = (
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_MB}m", "soak", folder], capture_output=True).returncode
            == 0
        )
        self.logs = Path(tempfile.mkdtemp(prefix="soak-logs-"))  # beside the room, which may be full
        self.room, began = Room(folder, mounted), time.monotonic()
        try:
            number = first
            while time.monotonic() - began < 60 * self.minutes:
                self.story(number)
                self.say(number, time.monotonic() - began)
                number += 1
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=False)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(self.logs, ignore_errors=True)

    def story(self, number: int) -> None:
        draw = random.Random(f"{self.seed}/{number}")
        case = draw.choice(self.cases)
        expected, seconds = self.reference(case)
        run_dir = self.room.folder / f"run_{number}"
        told = [f"story {number}, {case}"]
        self.promised = []
        self.by_case[str(case)] += 1
        log = self.logs / f"{number}.log"
        try:
            self.disturbed(draw, case, run_dir, log, seconds, told)
            self.finished(run_dir, log, case, told)
            unlike = list(expected.unlike(Finished.of(run_dir)))
            if unlike:
                raise Loss("it differs from the undisturbed run:\n  " + "\n  ".join(unlike))
            self.counts["stories"] += 1
        except Loss as loss:
            words = log.read_text(errors="replace")[-6000:] if log.exists() else ""
            self.losses.append({"story": number, "case": str(case), "events": told[1:], "loss": str(loss)[:2000]})
            print(f"\nLOST: {'; '.join(told)}: {loss}\n--- the end of its log\n{words}\n---", flush=True)
        finally:
            self.room.clear()
            for place in run_dir.parent.glob(f"{run_dir.name}*"):
                shutil.rmtree(place, ignore_errors=True)
                place.unlink(missing_ok=True)

    def disturbed(self, draw: random.Random, case: Case, run_dir: Path, log: Path, seconds: float, told: list[str]) -> None:
        for _ in range(draw.randint(1, 4)):
            job = self.start(draw, case, run_dir, log)
            scene = Scene(job, run_dir, case.arguments(run_dir), draw, self.room)
            name, moment = moments.drawn(draw, seconds)
            event = draw.choice(list(events.EVENTS))
            slow = 20.0 if isinstance(job, TorchrunJob) else 0.0
            try:
                if not self.waited(job, run_dir, moment, slow):
                    told.append(f"{name}: over before")
                    self.check_ended(job)
                    break
                self.counts["events"] += 1
                self.by_event[event] += 1
                told.append(f"{name}: {events.EVENTS[event](scene)}")
                if event == "second start":
                    self.check_ended(job, wait=FINISH_S)
            finally:
                time.sleep(0.1)
                self.counts["processes left behind"] += job.sweep()
            self.note(run_dir, log, event, told)

    def start(self, draw: random.Random, case: Case, run_dir: Path, log: Path) -> Job:
        self.before = self.newest(run_dir)
        log.unlink(missing_ok=True)
        kind = TorchrunJob if draw.random() < TORCHRUN_SHARE else ForkedJob
        self.counts["starts"] += 1
        self.counts["starts by torchrun"] += kind is TorchrunJob
        return kind(case.arguments(run_dir), log)

    def waited(self, job: Job, run_dir: Path, moment: moments.Moment, slow: float) -> bool:
        """Wait for the moment. False where the job has ended before."""
        began = time.monotonic() + slow
        while not moment(run_dir, time.monotonic() - began):
            if job.statuses() is not None:
                return False
            if time.monotonic() - began > FINISH_S:
                raise Loss("the job hangs by itself")
            time.sleep(0.005)
        return job.statuses() is None

    def check_ended(self, job: Job, wait: float = 0.0) -> None:
        statuses = job.wait(wait)
        if statuses is None or any(statuses):
            raise Loss(f"undisturbed, it ended with {statuses}")

    def newest(self, run_dir: Path) -> str | None:
        """The newest intact checkpoint."""
        found = [path for path in sorted((run_dir / "checkpoints").glob("step_*")) if damage(path) is None]
        return found[-1].name if found else None

    def note(self, run_dir: Path, log: Path, event: str, told: list[str]) -> None:
        """What the job that just ended has resumed from must have been the newest there was."""
        words = log.read_text(errors="replace")
        resumed = re.findall(r"resumed from \S*/(step_\d+)", words)
        if resumed and resumed[0] != self.before:
            raise Loss(f"resumed from {resumed[0]}, where {self.before} was intact")
        self.counts["recoveries"] += bool(resumed)
        metrics = run_dir / "metrics.jsonl"
        records = metrics.read_bytes().splitlines() if metrics.exists() else []
        if event == "damaged checkpoint":
            self.promised = []
        elif records[: len(self.promised)] != self.promised:
            raise Loss("steps that were made before a stop that was asked for were made again")
        if event == "SIGTERM or SIGUSR1" and "-> [75, 75]" in told[-1]:
            self.promised = records

    def finished(self, run_dir: Path, log: Path, case: Case, told: list[str]) -> None:
        """Continue to the end, undisturbed."""
        job = self.start(random.Random(0), case, run_dir, log)
        try:
            statuses = job.wait(FINISH_S)
            if statuses is None or any(statuses):
                raise Loss(f"continued, it ended with {statuses}")
            self.note(run_dir, log, "", told)
        finally:
            job.sweep()

    def reference(self, case: Case) -> tuple[Finished, float]:
        if case not in self.references:
            run_dir = self.room.folder / "reference"
            for attempt in range(2):  # the first of all pays for the server's imports
                shutil.rmtree(run_dir, ignore_errors=True)
                began = time.monotonic()
                job = ForkedJob(case.arguments(run_dir), self.logs / "reference.log")
                assert job.wait(FINISH_S) == [0, 0], job.words()[-4000:]
                if self.references or attempt:
                    break
            self.references[case] = Finished.of(run_dir), time.monotonic() - began
            shutil.rmtree(run_dir)
        return self.references[case]

    def say(self, number: int, seconds: float) -> None:
        c = self.counts
        print(
            f"{seconds:6.0f} s  story {number}: {c['events']} events, {c['recoveries']} recoveries, {len(self.losses)} lost",
            flush=True,
        )

    def store(self, path: Path, first: int) -> None:
        held = json.loads(path.read_text()) if path.exists() else {"sittings": []}
        sitting = {
            "seed": self.seed, "minutes": self.minutes, "first_story": first, "revision": self.revision, **self.counts,
            "lost": len(self.losses), "by_event": dict(self.by_event), "by_case": dict(self.by_case), "losses": self.losses,
        }  # fmt: skip
        sittings = [*held["sittings"], sitting]
        totals = {name: sum(s.get(name, 0) for s in sittings) for name in ("stories", "starts", "events", "recoveries", "lost")}
        path.write_text(json.dumps({**totals, "sittings": sittings}, indent=1) + "\n")

    def report(self, path: Path) -> int:
        held, c = json.loads(path.read_text()), self.counts
        print("\n".join(f"  {name:<24}{count:5}" for name, count in sorted({**self.by_event, **self.by_case}.items())))
        print(
            f"seed {self.seed}: {c['events']} events, {c['recoveries']} recoveries, {len(self.losses)} lost beyond the last "
            f"checkpoint; {path.name} has {held['events']} events, {held['lost']} lost"
        )
        return 1 if self.losses else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", default="", help="only cases whose name holds this, such as vllm")
    parser.add_argument("--start", type=int, default=0, help="number of the first story")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # ends the server of ranks, too
    soak = Soak(given.minutes, given.seed, given.case)
    soak.run(given.start)
    soak.store(given.results, given.start)
    return soak.report(given.results)


if __name__ == "__main__":
    sys.exit(main())
