"""metrics.jsonl: one JSON object a record, the source of every figure and report, and what two runs are compared by.

A record is {"phase", "step", "time", then metrics by name}. The phase says what `step` counts:

    warmup      step w: the SFT step w of W (0 .. W-1)
    train       step t: the pass t of Algorithm 2's loop (0 .. T-1); `mu` is mu_{t+1}, the weight this step's loss was given
    validation  step t: an evaluation of theta_t, the policy after t training steps (0: after warm-up; T: the final one)

A checkpoint taken before training step t holds theta_t. Resuming from it therefore drops the records of step t and later, but
keeps the evaluation of theta_t itself: evaluate first, then save.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from nemo_amft.observe.files import write_atomically, writing
from nemo_amft.observe.side_output import side_output
from nemo_amft.types import UserError

log = logging.getLogger(__name__)

Phase = Literal["warmup", "train", "validation"]
Record = dict[str, Any]

FILE_NAME = "metrics.jsonl"

_NUMBER = (int, float, type(None))  # null: what was not finite

TIME_KEYS = ("time", "seconds/", "tokens_per_second/", "memory/", "perf/", "start_up/")
"""What differs between two runs of the same numbers: the key "time", and every key that begins with one of the others."""


def is_time_key(key: str) -> bool:
    """Whether `key` measures the machine rather than the training: left out when runs are compared."""
    return key == TIME_KEYS[0] or key.startswith(TIME_KEYS[1:])


class Logger(Protocol):
    """What is used of a Lightning logger (TensorBoardLogger, WandbLogger)."""

    experiment: Any

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def finalize(self, status: str) -> None: ...


class NullMetricsWriter:
    """Takes what a `MetricsWriter` takes and writes nothing: for every rank but 0."""

    def write(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record."""

    def rewind(self, phase: Literal["warmup", "train"], step: int, validated: int | None = None) -> None:
        """Forget what was recorded of (phase, step) and later."""

    def close(self) -> None:
        """Release the file."""

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MetricsWriter(NullMetricsWriter):
    """Appends to `run_dir`/metrics.jsonl and forwards to `loggers`. Only rank 0 constructs one.

    Numbers are written with the digits that give back the same float. NaN and infinity, which JSON does not have, become null;
    they are counted in `non_finite` and warned of once a metric.
    """

    def __init__(self, run_dir: str | Path, loggers: Sequence[Logger] = ()) -> None:
        self.path = Path(run_dir) / FILE_NAME
        self.non_finite = 0
        self._warned: set[str] = set()
        self._loggers = tuple(loggers)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._keep(lambda record: True)  # a job that was killed may have left half a line, which must not be appended to
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record and flush it. Values are Python, NumPy or 0-dimensional torch numbers. Raises UnwrittenError: what
        is not recorded can be neither compared nor reported, so a run does not go on without it."""
        values = {name: self._finite(name, value) for name, value in metrics.items()}
        record = {"phase": phase, "step": step, "time": time.time(), **values}
        with writing(self.path):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        # Warm-up counts its own steps, so its curves are kept apart from those of the main loop.
        prefix = "warmup/" if phase == "warmup" else ""
        scalars = {prefix + name: value for name, value in values.items() if value is not None}
        for logger in self._loggers:
            with side_output(type(logger).__name__):
                logger.log_metrics(scalars, step=step)

    def rewind(self, phase: Literal["warmup", "train"], step: int, validated: int | None = None) -> None:
        """Drop every record that a run resumed at (phase, step) will write again, warm-up being before training. `validated`:
        the last step whose evaluation is not made again, where that is not `step`."""

        def is_past(record: Record) -> bool:
            if phase == "warmup":
                return record["phase"] == "warmup" and record["step"] < step
            last_evaluation = step if validated is None else validated
            kept_up_to = last_evaluation if record["phase"] == "validation" else step - 1
            return record["phase"] == "warmup" or record["step"] <= kept_up_to

        self._file.close()
        self._keep(is_past)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()
        for logger in self._loggers:
            with side_output(type(logger).__name__):
                logger.finalize("success")
                if hasattr(logger.experiment, "finish"):  # W&B would call a process that ends without it crashed
                    logger.experiment.finish()

    def _keep(self, wanted) -> None:
        kept = [line for line, record in _lines(self.path) if wanted(record)]
        write_atomically(self.path, "".join(kept))

    def _finite(self, name: str, value: Any) -> float | int | None:
        number = value.item() if hasattr(value, "item") else value
        if math.isfinite(number):
            return number
        self.non_finite += 1
        if name not in self._warned:
            self._warned.add(name)
            log.warning("metric %s is %s; written as null, and not warned of again", name, number)
        return None


def read_metrics(path: str | Path) -> list[Record]:
    """The records of a metrics.jsonl, or of the one in a run folder, in the order of writing.

    A last line without its end, as a killed job leaves one, is passed over. Any other damage raises UserError.
    """
    path = Path(path)
    return [record for _, record in _lines(path / FILE_NAME if path.is_dir() else path)]


def _lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Every whole line with the record it holds."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected the {FILE_NAME} of a run") from None
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # what follows the last line end is nothing, or half a line
        try:
            record = json.loads(line)
            whole = record["phase"] in ("warmup", "train", "validation") and isinstance(record["step"], int)
            whole = whole and all(isinstance(value, _NUMBER) for name, value in record.items() if name != "phase")
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise UserError(f"{path}, line {number}: found {line[:60]!r}, expected a JSON object with phase, step and numbers")
        yield line + "\n", record
