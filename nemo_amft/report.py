"""Runs side by side.

    python -m nemo_amft.report RUN... [--out FOLDER] [--target ACCURACY]
    python -m nemo_amft.report RUN... --study FILE --into DOCUMENT

RUN is a run directory, or the folder of an earlier report. Runs of one name (seeds) share a row, as their mean with a 95%
confidence interval. The table is Markdown, on stdout; with --out it is also written to FOLDER/report.md, with a picture of the
runs in FOLDER/comparison.png and the numbers behind both in FOLDER/runs.csv and FOLDER/curves.csv.

With --into the marked places of a Markdown document are filled with the tables of a study (nemo_amft/observe/document.py).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nemo_amft.config.typed import local_path
from nemo_amft.observe import document, metrics
from nemo_amft.observe.runs import Run, read_runs, write_csv
from nemo_amft.observe.tables import by_name, columns, default_target, table
from nemo_amft.types import UserError


def _warn_of_repeated_seeds(runs: Sequence[Run]) -> None:
    """Two runs of one seed are not two samples, so an interval over them would be too narrow."""
    for (name, seed), times in Counter((run.name, run.seed) for run in runs if run.seed is not None).items():
        if times > 1:
            print(f"nemo_amft: warning: {name}: seed {seed} is there {times} times; the interval is too small", file=sys.stderr)


def _draw(runs: Sequence[Run], path: Path) -> None:
    """One line a run; seeds of one name share a colour."""
    from nemo_amft.observe.figures import comparison

    lines: dict[str, list[list[metrics.Record]]] = {}
    for name, group in by_name(runs).items():
        lines[name if len(group) == 1 else f"{name} ({len(group)} seeds)"] = [run.records for run in group]
    comparison(lines, path, "Runs side by side")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nemo_amft.report", description="Show runs side by side.")
    parser.add_argument("run", nargs="+", type=local_path, help="run directory, or the folder of an earlier report")
    parser.add_argument("--out", type=local_path, help="folder to write report.md, comparison.png, runs.csv and curves.csv to")
    parser.add_argument(
        "--target", type=float, help="validation accuracy, 0 to 1, to reach; nine tenths of the best there is by default"
    )
    parser.add_argument("--study", type=local_path, help="study's file, for --into")
    parser.add_argument("--into", type=local_path, help="Markdown document whose marked places are filled")
    args = parser.parse_args(argv)
    try:
        runs = [run for folder in args.run for run in read_runs(folder)]
        if (args.study is None) != (args.into is None):
            raise UserError("--into: found without --study or the other way round, expected both or neither")
        if args.into is not None:
            if args.out is not None or args.target is not None:
                raise UserError("--into: found with --out or --target, expected neither: the study's file has the target")
            from nemo_amft.study import read_study

            study = read_study(args.study)
            document.fill(args.into, runs, study.tables, study.target or default_target(runs), study.reference)
            return 0
        if args.out is not None and args.out.exists() and not args.out.is_dir():
            raise UserError(f"--out: found {args.out}, a file, expected a folder, new or of an earlier report")
        if args.target is not None and not 0.0 < args.target <= 1.0:
            raise UserError(f"--target: found {args.target:g}, expected an accuracy above 0 and at most 1")
    except UserError as error:
        print(f"nemo_amft: error: {error}", file=sys.stderr)
        return 2
    _warn_of_repeated_seeds(runs)
    text = table(by_name(runs), columns(runs, args.target or default_target(runs)))
    print(text, end="")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.md").write_text(text + "\n![comparison](comparison.png)\n", encoding="utf-8")
        write_csv(runs, args.out)
        _draw(runs, args.out / "comparison.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
