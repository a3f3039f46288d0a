"""`make fuzz MINUTES=n SEED=s`: inputs of every kind, in rounds, until the time is over; see kinds.py for what is a fault.

The worker is a process of its own, so that a crash of a library in C, or a loop there that no alarm ends, is found as well:
this process sees it and starts another one behind that round. A round's inputs follow from SEED, kind and number alone; --kind
and --start run one again.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from nemo_amft.observe.summary import git_revision
from tests.fuzz.kinds import OUTCOMES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
SILENT_S = 300.0
"""Without a word of the worker for so long it hangs where no alarm reaches; shrinking a fault says nothing for a while."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", default=[], help="only kinds whose name holds this")
    parser.add_argument("--start", type=int, default=0, help="number of the first round")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sitting = Sitting(given.minutes, given.seed, given.kind, given.start)
    sitting.run()
    sitting.store(given.results)
    return sitting.report(given.results)


class Sitting:
    """One call, with what it has found so far."""

    def __init__(self, minutes: float, seed: int, kinds: list[str], start: int):
        self.minutes, self.seed, self.kinds, self.start = minutes, seed, kinds, start
        self.counts: dict[str, Counter[str]] = {}
        self.faults: list[dict[str, Any]] = []
        self.note = tempfile.NamedTemporaryFile(prefix="fuzz-")  # noqa: SIM115  goes with this process
        self.began = time.monotonic()
        self.revision = git_revision()  # of what is run, whatever is committed meanwhile

    def run(self) -> None:
        step = self.start
        while (left := self.began + 60 * self.minutes - time.monotonic()) > 0:
            step = self._worker(step, left)

    def _worker(self, step: int, left: float) -> int:
        """One worker, from round number `step` on. Returns the number of the round to go on with."""
        command = [sys.executable, "-m", "tests.fuzz.worker", str(self.seed), str(step), str(left), self.note.name, *self.kinds]
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, start_new_session=True)
        assert process.stdout is not None
        doing: dict[str, Any] = {"kind": "start", "step": step, "input": "(start)"}
        buffer = b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], SILENT_S)
            data = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not ready:
                os.killpg(process.pid, 9)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                doing = self._heard(json.loads(line), doing)
        status = process.wait()
        assert doing["kind"] != "start", f"the worker does not start: status {status}"
        if status == 0:
            return doing["step"] + 1
        how = f"no word within {SILENT_S:g} s" if not ready else f"the process ended with status {status}"
        self._fault(doing | {"error": how, "example": Path(self.note.name).read_text(errors="replace").strip()})
        return doing["step"] + 1

    def _heard(self, said: dict[str, Any], doing: dict[str, Any]) -> dict[str, Any]:
        if "counts" in said:
            counts = self.counts.setdefault(said["kind"], Counter())
            counts.update(said["counts"])
            self._progress(said["kind"])
        if "error" in said:
            self._fault(said)
        return {**doing, **{name: said[name] for name in ("kind", "step") if name in said}}

    def _fault(self, fault: dict[str, Any]) -> None:
        self.counts.setdefault(fault["kind"], Counter())["faults"] += 1
        if any((fault["kind"], fault["error"][:60]) == (f["kind"], f["error"][:60]) for f in self.faults):
            return  # once is enough to mend it
        self.faults.append({name: fault[name] for name in ("kind", "step", "error", "example")})
        print(f"\nfault in {fault['kind']}, round {fault['step']}: {fault['error']}\n  {fault['example']}", flush=True)

    def _progress(self, kind: str) -> None:
        seconds = time.monotonic() - self.began
        line = f"{seconds:5.0f} s  {self.total('inputs'):7,} inputs  {self.total('faults')} faults  {kind}"
        if sys.stdout.isatty():
            print(f"\r{line:<100}", end="", flush=True)
        elif int(seconds / 30) != getattr(self, "_said", -1):
            self._said = int(seconds / 30)
            print(line, flush=True)

    def total(self, name: str) -> int:
        return sum(sum(c[o] for o in OUTCOMES) if name == "inputs" else c[name] for c in self.counts.values())

    def store(self, path: Path) -> None:
        """Append this sitting. The totals are over all that the file has."""
        held = json.loads(path.read_text()) if path.exists() else {"sittings": []}
        kinds = {
            name: {"inputs": sum(c[o] for o in OUTCOMES), **{o: c[o] for o in (*OUTCOMES, "faults")}}
            for name, c in self.counts.items()
        }
        held["sittings"].append(
            {
                "seed": self.seed, "minutes": self.minutes, "first_round": self.start, "revision": self.revision,
                "kinds": kinds, "faults": self.faults,
            }
        )  # fmt: skip
        totals: dict[str, Counter[str]] = {}
        for sitting in held["sittings"]:
            for name, counts in sitting["kinds"].items():
                totals.setdefault(name, Counter()).update(counts)
        held = {"inputs": sum(c["inputs"] for c in totals.values()), "kinds": {n: dict(c) for n, c in totals.items()}} | {
            "sittings": held["sittings"]
        }
        path.write_text(json.dumps(held, indent=1) + "\n")

    def report(self, path: Path) -> int:
        print()
        for name, c in self.counts.items():
            print(f"{name:<32}" + "".join(f"{c[outcome]:8,} {outcome}" for outcome in (*OUTCOMES, "faults")))
        total = {name: f"{self.total(name):,}" for name in ("inputs", *OUTCOMES, "faults")}
        held = json.loads(path.read_text())["inputs"]
        print(f"seed {self.seed}: {', '.join(f'{n} {name}' for name, n in total.items())}; {path.name} has {held:,} inputs")
        return 1 if self.total("faults") else 0


if __name__ == "__main__":
    sys.exit(main())
