"""What a run leaves in its folder and later runs, evaluations and reports read: spoilt as by a full disk or a hand."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_amft import report
from nemo_amft.algorithms.run import finished_run
from nemo_amft.config.continuation import changes
from nemo_amft.config.load import load
from nemo_amft.config.schema import Config
from nemo_amft.config.validate import resolved
from nemo_amft.data.template import TIME_FILE, pinned_time
from nemo_amft.evaluation.answers import Answers
from nemo_amft.models.checkpoints import damage, find, newest_state
from nemo_amft.observe.metrics import FILE_NAME, MetricsWriter, read_metrics
from nemo_amft.observe.runs import read_runs
from nemo_amft.parallel import run_lock
from nemo_amft.types import UserError
from tests.fuzz.kinds import Kind, expect
from tests.fuzz.noise import Files, Folder, folders

RECORDS = [
    {"phase": "warmup", "step": 0, "time": 1.0, "loss/sft": 4.5},
    {"phase": "validation", "step": 0, "time": 2.0, "validation/accuracy": 0.25, "test/accuracy": 0.5},
    {"phase": "train", "step": 0, "time": 3.0, "mu": 0.5, "reward/mean": None},
    {"phase": "validation", "step": 1, "time": 4.0, "validation/accuracy": 0.5, "test/accuracy": 0.5},
]
SUMMARY = {
    "steps": 120,
    "name": "a",
    "seed": 1,
    "wall_seconds": 2.5,
    "tokens_per_second": 10.0,
    "accuracy": {"final/test": 0.5},
}
TRAINER = {"progress": {"step": 1}, "controller": {"mu": 0.5}, "streams": {}, "format": 2}


@functools.cache
def _config() -> Config:
    return load(["--config-name", "quickstart"], check=False)


@functools.cache
def _files() -> Files:
    content = {"policy/data": b"0123456789", "trainer.json": json.dumps(TRAINER).encode()}
    manifest = {name: [len(data), zlib.crc32(data)] for name, data in content.items()}
    return {
        FILE_NAME: "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
        "summary.json": json.dumps(SUMMARY).encode(),
        "config.yaml": json.dumps(resolved(_config())).encode(),  # which is YAML too
        "run.lock": json.dumps(
            {"token": "a", "launch": "b", "host": "c", "machine": "", "pid": 1, "born": 1, "job_id": "", "restart_count": 0}
        ).encode(),
        TIME_FILE: b"2026-01-31T00:00:00\n",
        "checkpoints/step_00000001/manifest.json": json.dumps(manifest).encode(),
        **{f"checkpoints/step_00000001/{name}": data for name, data in content.items()},
        "answers/mine.json": json.dumps({"temperature": 0.6}).encode(),
        "answers/mine.jsonl": json.dumps({"index": 0, "sample": 0, "key": "k", "id": "i"}).encode() + b"\n",
    }


def _reads(folder: Path) -> Iterator[Any]:
    """Everything that reads a folder, one after the other."""
    yield lambda: list(map(str, changes(folder, _config())))
    yield lambda: finished_run(folder, _config())
    yield lambda: newest_state(folder / "checkpoints")
    yield lambda: read_metrics(folder)
    yield lambda: _reported(folder)
    yield lambda: MetricsWriter(folder).close()
    yield lambda: _found(folder)
    yield lambda: pinned_time(folder, "{{ strftime_now('%Y') }}", None)
    yield lambda: run_lock._read(folder / "run.lock") if (folder / "run.lock").exists() else None
    yield lambda: Answers(folder, "mine", {"temperature": 0.6}, ["k"])


def _reported(folder: Path) -> None:
    read_runs(folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = report.main([str(folder)])
    if status:
        raise UserError(said.getvalue().strip())


def _found(folder: Path) -> None:
    checkpoint = find(str(folder))
    for name, content in _files().items():
        place = folder / name
        if place.is_relative_to(checkpoint) and place.name != "manifest.json" and place.exists():
            expect(
                place.read_bytes() == content or damage(checkpoint) is not None or _resealed(checkpoint),
                f"{name} is taken as it is",
            )


def _resealed(checkpoint: Path) -> bool:
    """Whether the manifest itself is another one, which may fit."""
    name = "checkpoints/step_00000001/manifest.json"
    return (checkpoint / "manifest.json").read_bytes() != _files()[name]


def _check_folder(given: Folder) -> None:
    refusals = []
    with given.written() as folder:
        for read in _reads(folder):
            try:
                read()
            except UserError as error:
                expect("\n" not in str(error), f"the refusal has several lines: {error}")
                refusals.append(error)
    for refusal in refusals:
        raise refusal


KINDS = (Kind("runs' folders", folders(_files), _check_folder, lambda given: ("fuzz-", ": found", "mine")),)
