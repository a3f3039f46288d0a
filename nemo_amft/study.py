"""Many runs of one study, on this machine, and their report.

    python -m nemo_amft.study FILE [--out FOLDER] [--jobs N] [--only CELL,CELL] [--list] [key=value ...]

FILE names a configuration and the study's cells, each a name with overrides (studies/). Every cell is run with every seed, N
at a time, in FOLDER/CELL/seed_S with its output in FOLDER/CELL/seed_S.log; seeds of a cell share a row of FOLDER/report. With
`base` one run is made first, in FOLDER/base, and all cells start from the model that it exports. The same command again goes on
where it was: finished runs are kept, the others continue from their checkpoints.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nemo_amft.config import override, rules, typed
from nemo_amft.config.load import load
from nemo_amft.observe.document import Table
from nemo_amft.types import UserError


@dataclass(frozen=True)
class Study:
    config: str
    """The primary configuration (--config-name) of every run."""
    cells: dict[str, list[str]]
    """Overrides of each cell, by its name."""
    seeds: list[int]
    """trainer.seed of each cell's runs."""
    overrides: list[str]
    """Overrides of every run, before those of its cell."""
    target: float | None = None
    """Validation accuracy that the report counts rollouts and demonstrations to."""
    base: list[str] | None = None
    """Overrides of the one run that makes the model which all cells start from; None where they start from model.path. Its seed
    is the first, if not given here: seeds are to differ in data and sampling, as they do for a pretrained model."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Of the document that tells about the study (nemo_amft/observe/document.py)."""
    reference: str | None = None
    """The cell that tables set the others against, seed by seed."""


BASE = "base"
"""Folder and name of the run that makes what the cells start from."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    name: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()

    def command(self, config: str) -> list[str]:
        """What starts it: one process, or torchrun where the configuration has several."""
        arguments = ["--config-name", config, *self.overrides]
        processes = load(arguments, check=False).trainer.devices
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        return [sys.executable, *launcher, "-m", "nemo_amft.train", *arguments]


def read_study(path: Path) -> Study:
    """Read and check a study's file. Raises UserError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {typed.one_line(error)}; expected the YAML file of a study") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: found {type(values).__name__} at the top level, expected the keys of a study")
    study = typed.build(Study, {"overrides": [], **values}, str(path), list(typed.keys_of(Study, str(path))))
    for name in study.cells:
        if not re.fullmatch(r"[A-Za-z_][\w.+-]*", name):
            raise UserError(f"{path}: cells: found the name {name!r}, expected letters, digits and _.+-, and no digit in front")
    if BASE in study.cells:
        raise UserError(
            f"{path}: cells: found the name {BASE!r}, expected another: it is that of the run that cells start from"
        )
    if not study.cells or not study.seeds:
        raise UserError(f"{path}: found no cells or no seeds, expected one of each at least")
    if study.target is not None and not 0.0 < study.target <= 1.0:
        raise UserError(f"{path}: target: found {study.target:g}, expected an accuracy above 0 and at most 1")
    if study.reference is not None and study.reference not in study.cells:
        raise UserError(f"{path}: reference: found {study.reference}, expected a cell")
    return study


def runs(study: Study, out: Path, only: Sequence[str], overrides: Sequence[str]) -> Iterator[Cell]:
    """Seed by seed, so that a study that is cut short has all its cells. Raises UserError for an unknown cell."""
    for name in only:
        if name not in study.cells:
            raise UserError(
                f"--only: found {name}, expected a cell of the study, such as {typed.nearest(name, study.cells)[0]}"
            )
    origin = () if study.base is None else (override.argument("model.path", str(out / BASE / "hf")),)
    for seed in study.seeds:
        for name in only or study.cells:
            yield _cell(study, name, seed, out / name / f"seed_{seed}", (*study.cells[name], *overrides, *origin))


def bases(study: Study, out: Path, overrides: Sequence[str]) -> list[Cell]:
    """The run whose model the cells start from, if the study has one."""
    own = (*(study.base or ()), *overrides, "checkpoint.export_hf=true")
    return [] if study.base is None else [_cell(study, BASE, study.seeds[0], out / BASE, own)]


def _cell(study: Study, name: str, seed: int, folder: Path, overrides: Sequence[str]) -> Cell:
    place = (
        override.argument("exp_manager.name", name),
        override.argument("exp_manager.explicit_log_dir", str(folder)),
    )
    return Cell(name, seed, folder, (*study.overrides, f"trainer.seed={seed}", *overrides, *place))


def check(cells: Iterable[Cell], config: str) -> None:
    """Raises UserError for the first cell whose configuration is refused, before any is run."""
    for cell in cells:
        for message in rules.violations(load(["--config-name", config, *cell.overrides], check=False), on_this_machine=False):
            if not message.startswith("model.path:"):  # which the study's base makes
                raise UserError(f"{cell.name}: {message}")


def start(cell: Cell, config: str) -> int:
    """Run a cell to its end. Returns its exit status."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    with cell.folder.with_suffix(".log").open("a") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(cell.command(config), stdout=log, stderr=subprocess.STDOUT, env=environment).returncode


def run_all(cells: Sequence[Cell], config: str, jobs: int) -> list[Cell]:
    """Run what is not finished, `jobs` at a time, saying so. Returns the cells that failed."""
    waiting = [cell for cell in cells if not cell.finished]
    print(f"{len(cells)} runs, {len(cells) - len(waiting)} of them finished before", flush=True)
    begun, failed = time.monotonic(), []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(start, cell, config): cell for cell in waiting}
        for done, future in enumerate(as_completed(running), start=1):
            cell, status = running[future], future.result()
            left = (time.monotonic() - begun) / done * (len(waiting) - done) / 60
            print(f"{done}/{len(waiting)} {cell.name} seed {cell.seed}: status {status}; {left:.0f} min left", flush=True)
            if status:
                failed.append(cell)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 1 if a run failed, which leaves the others as they are."""
    parser = argparse.ArgumentParser(prog="python -m nemo_amft.study", description="Run a study's cells and report on them.")
    parser.add_argument("file", type=typed.local_path, help="the study, a YAML file such as studies/methods.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of every run")
    parser.add_argument("--out", type=typed.local_path, help="folder of the runs and the report; runs/FILE's name by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at one time")
    parser.add_argument("--only", default="", help="these cells alone, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    args = parser.parse_intermixed_args(argv)
    try:
        if args.jobs < 1:
            raise UserError(f"--jobs: found {args.jobs}, expected at least 1")
        study, out = read_study(args.file), args.out or Path("runs") / args.file.stem
        cells = list(runs(study, out, [name for name in args.only.split(",") if name], args.overrides))
        before = bases(study, out, args.overrides)
        commands = [cell.command(study.config) for cell in (*before, *cells)]  # all are read before the first is run
        if not args.list:  # sweep.sh lists them, and gives each its processes
            check((*before, *(cell for cell in cells if cell.seed == study.seeds[0])), study.config)
    except UserError as error:
        print(f"nemo_amft: error: {error}", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(shlex.join(command) for command in commands))
        return 0
    failed = run_all(before, study.config, args.jobs) if before else []
    failed += run_all(cells, study.config, args.jobs) if not failed else []
    for cell in failed:
        print(f"nemo_amft: error: {cell.name} seed {cell.seed}: see {cell.folder}.log", file=sys.stderr)
    from nemo_amft import report

    there = [str(cell.folder) for cell in cells if (cell.folder / "metrics.jsonl").is_file()]
    target = [] if study.target is None else ["--target", str(study.target)]
    status = report.main([*there, "--out", str(out / "report"), *target]) if there else 0
    return 1 if failed else status


if __name__ == "__main__":
    sys.exit(main())
