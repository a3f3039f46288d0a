"""When to disturb a run: at random, or in a window that its own files show."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Moment = Callable[[Path, float], bool]
"""Whether now is it, of a run directory and the seconds since the start."""


def _last(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / "metrics.jsonl").read_bytes().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}


def _saving(run_dir: Path, seconds: float) -> bool:
    return any((run_dir / "checkpoints").glob(".writing_*"))


def _sealing(run_dir: Path, seconds: float) -> bool:
    return any((run_dir / "checkpoints").glob(".writing_*/manifest.json"))


def _validating(run_dir: Path, seconds: float) -> bool:
    last = _last(run_dir)
    return last.get("phase") == "train" and (last["step"] + 1) % 2 == 0


def _warming_up(run_dir: Path, seconds: float) -> bool:
    return _last(run_dir).get("phase") == "warmup"


def _warming_up_the_critic(run_dir: Path, seconds: float) -> bool:
    last = _last(run_dir)
    return last.get("phase") == "warmup" and last["step"] >= 4


def _training(run_dir: Path, seconds: float) -> bool:
    return _last(run_dir).get("phase") == "train"


def _exporting(run_dir: Path, seconds: float) -> bool:
    return (run_dir / "hf.partial").exists()


def _starting(run_dir: Path, seconds: float) -> bool:
    return (run_dir / "run.lock").exists()


WINDOWS: dict[str, Moment] = {
    "saving": _saving,
    "sealing": _sealing,
    "validating": _validating,
    "warm-up": _warming_up,
    "critic's warm-up": _warming_up_the_critic,
    "training": _training,
    "exporting": _exporting,
    "starting": _starting,
}


def drawn(draw: random.Random, seconds: float) -> tuple[str, Moment]:
    """A moment of a run that takes so long, and its name."""
    if draw.random() < 0.4:
        at = draw.uniform(0.0, seconds)
        return f"{at:.1f} s", lambda run_dir, passed: passed >= at
    name = draw.choice(list(WINDOWS))
    window, delay = WINDOWS[name], draw.choice((0.0, 0.0, draw.uniform(0.0, 0.5)))
    seen: list[float] = []

    def moment(run_dir: Path, passed: float) -> bool:
        if not seen and window(run_dir, passed):
            seen.append(passed)
        return bool(seen) and passed - seen[0] >= delay

    return name, moment
