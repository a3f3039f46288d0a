"""Seconds from the start of the process to the end of the first step, by part.

There is one start of a process, so this is state of the module: marks are set where a part ends, by whoever ends it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


def _process_age() -> float:
    """Seconds since this process began; 0 where the kernel does not say."""
    try:
        began = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


_parts: dict[str, float] = {}
_last: float | None = time.monotonic() - _process_age()


def mark(part: str) -> None:
    """The part that ran since the last mark was `part`. Nothing after `finish`."""
    global _last
    if _last is not None:
        now = time.monotonic()
        _parts[part] = _parts.get(part, 0.0) + now - _last
        _last = now


def finish(part: str) -> dict[str, float]:
    """Close the account with a last part. Returns {part: seconds} in order; empty if it was closed before."""
    global _last
    if _last is None:
        return {}
    mark(part)
    _last = None
    return dict(_parts)


def described(parts: dict[str, float]) -> str:
    """One line for the terminal."""
    return f"start-up {sum(parts.values()):.1f} s: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
