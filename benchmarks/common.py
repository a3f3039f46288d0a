"""What the benchmarks share: where results go, and what machine they are from."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from nemo_amft.observe.summary import git_revision, versions

RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    """The processor's own name for itself, if the kernel tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `result` with the machine, the versions and the command to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    about = {"command": " ".join(["python", *sys.argv]), "machine": machine, "versions": versions(), "revision": git_revision()}
    path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    return path
