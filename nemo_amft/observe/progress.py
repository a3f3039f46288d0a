"""What rank 0 shows on the terminal while it trains: one moving line on a TTY, a plain line every few steps elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

SHOWN = {
    "loss/sft": ("sft loss", ".3f"),
    "reward/mean": ("reward", ".3f"),
    "mu": ("mu", ".3f"),
    "entropy": ("entropy", ".3f"),
    "tokens_per_second/generation": ("tok/s", ",.0f"),
    "optimizer/skipped": ("skipped", ".0f"),
}
"""Metrics on the line, in order, with their short names and formats. One that a method does not have is left out, and so is the
number of skipped steps while it is 0."""

REDRAW_S = 0.2
"""Least time between two drawings of the moving line."""


class Progress:
    """Progress of one phase after another. `enabled=False` (every rank but 0) shows nothing."""

    def __init__(self, log_every: int = 1, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._log_every = max(1, log_every)
        self._enabled = enabled
        self._tty = self._stream.isatty()
        self._drawn = False
        self._drawn_at = float("-inf")
        self.start("", 0)

    def start(self, phase: str, total: int, done: int = 0) -> None:
        """Begin `phase` of `total` steps, `done` of them before this process started (a resumed run)."""
        self._finish_line()
        self._phase, self._total, self._first, self._started = phase, total, done, time.monotonic()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell that step `step` (counted from 0) of the phase is done."""
        if not self._enabled:
            return
        done = step + 1
        last = done == self._total
        if self._tty:
            now = time.monotonic()
            if last or now - self._drawn_at >= REDRAW_S:
                self._draw(self._line(done, metrics))
                self._drawn_at = now
            if last:
                self._finish_line()
        elif last or done % self._log_every == 0:
            self._print(self._line(done, metrics))

    def message(self, text: str) -> None:
        """Print `text` on a line of its own, whatever is being drawn."""
        if self._enabled:
            self._finish_line()
            self._print(text)

    def close(self) -> None:
        """Leave the cursor on a fresh line."""
        self._finish_line()

    def _line(self, done: int, metrics: Mapping[str, float]) -> str:
        parts = [f"{self._phase} {done:>{len(str(self._total))}}/{self._total}"]
        if self._tty:
            filled = round(20 * done / self._total) if self._total else 20
            parts.append("█" * filled + "░" * (20 - filled))
        shown = [key for key in SHOWN if metrics.get(key) is not None and (metrics[key] or key != "optimizer/skipped")]
        parts += [f"{SHOWN[key][0]} {metrics[key]:{SHOWN[key][1]}}" for key in shown]
        seconds_a_step = (time.monotonic() - self._started) / max(1, done - self._first)
        parts.append(f"{_clock(seconds_a_step * (self._total - done))} left")
        return "  ".join(parts)

    def _draw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._print("\r\x1b[K" + line[:width], end="")  # a line that wrapped could not be drawn over
        self._drawn = True

    def _finish_line(self) -> None:
        if self._drawn:
            self._drawn = False
            self._print("")

    def _print(self, text: str, end: str = "\n") -> None:
        try:
            print(text, end=end, file=self._stream, flush=True)
        except OSError:  # whoever read it is gone (a pipe, a terminal); metrics.jsonl has everything
            self._enabled = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def final_table(rows: Sequence[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Print what a run ended with: one line a row, names and values aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    print("", *(f"  {name:<{width}}  {value}" for name, value in rows), "", sep="\n", file=stream or sys.stdout, flush=True)
