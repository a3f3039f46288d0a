"""A study's document: everything in it that is a number comes from the runs.

Two kinds of places are marked in the Markdown, in comments that readers do not see:

    <!-- table NAME -->        the study's table NAME (`tables` in its file), between this line and the next <!-- end -->
    <!-- cost -->              how many runs there were and how long they took, likewise
    <!--= CELL | COLUMN -->..<!--/-->       a cell's value in a column of the tables, in the middle of a sentence
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nemo_amft.observe.files import write_atomically
from nemo_amft.observe.runs import Run
from nemo_amft.study import Study, read_study
from nemo_amft.types import UserError

BLOCK = re.compile(r"(<!-- (table \S+|cost) -->\n).*?(<!-- end -->)", re.DOTALL)
VALUE = re.compile(r"(<!--= ([^|>]+?) \| ([^>]+?) -->).*?(<!--/-->)", re.DOTALL)


def fill(path: Path, runs: Sequence[Run], study_file: Path) -> int:
    """Fill the document at `path`. Returns the exit status. Raises UserError for a mark that nothing fits; the document is then
    as it was."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a Markdown document") from None
    write_atomically(path, filled(text, runs, read_study(study_file), str(path)))
    return 0


def filled(text: str, runs: Sequence[Run], study: Study, where: str) -> str:
    """`text` with its marked places filled; `where` names it in errors. Raises UserError as `fill` does."""
    from nemo_amft import report

    target = study.target or report.default_target(runs)
    columns = {column[0]: column for column in report.columns(runs, target, study.reference)}
    for name in dict.fromkeys(name for run in runs for name in run.sets):
        title = f"{name} after warm-up"
        columns[title] = (title, lambda run, name=name: run.after_warm_up(name), columns["final accuracy"][2])
    groups = report.by_name(runs)

    def group(name: str) -> list[Run]:
        if name not in groups:
            raise UserError(f"{where}: found the cell {name!r}, expected one that was run: {', '.join(groups)}")
        return groups[name]

    def column(name: str) -> report.Column:
        if name not in columns:
            raise UserError(f"{where}: found the column {name!r}, expected one of {', '.join(columns)}")
        return columns[name]

    def block(match: re.Match[str]) -> str:
        kind, _, name = match[2].partition(" ")
        if kind == "cost":
            body = _cost(runs)
        elif name in study.tables:
            chosen = study.tables[name]
            shown = [column(title) for title in chosen.columns]
            body = report.table([run for cell in chosen.cells for run in group(cell)], shown)
        else:
            raise UserError(f"{where}: found the table {name!r}, expected one of {', '.join(study.tables)}")
        return f"{match[1]}\n{body}\n{match[3]}"

    text = BLOCK.sub(block, text)
    return VALUE.sub(lambda match: f"{match[1]}{report.cell(group(match[2]), column(match[3]))}{match[4]}", text)


def _cost(runs: Sequence[Run]) -> str:
    unfinished = sum(not run.finished for run in runs)
    hours = sum(run.wall_seconds or 0.0 for run in runs) / 3600
    steps = sum(r["phase"] == "train" for run in runs for r in run.records)
    rollouts = sum(r.get("data/samples") or 0.0 for run in runs for r in run.records)
    return (
        f"{len(runs)} runs ({unfinished} unfinished), {steps:,} training steps and {rollouts:,.0f} rollouts in them, in "
        f"{hours:.1f} hours of a process each.\n"
    )
