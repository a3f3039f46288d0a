"""A study's document: everything in it that is a number comes from the runs.

Places are marked in the Markdown, in comments that readers do not see. Between such a line and the next <!-- end --> comes

    <!-- table NAME -->        the study's table NAME (`tables` in its file)
    <!-- accuracy NAME -->     a picture of how accurate the table's cells are in the end, on all sets of problems
    <!-- mu NAME -->           a picture of the table's cells' mu over the steps
    <!-- cost -->              how many runs there were and how long they took

and in the middle of a sentence <!--= CELL | COLUMN -->..<!--/--> a cell's value in a column of the tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nemo_amft.observe.files import write_atomically
from nemo_amft.observe.runs import Run
from nemo_amft.study import Study, read_study
from nemo_amft.types import UserError

BLOCK = re.compile(r"(<!-- ((?:table|accuracy|mu) \S+|cost) -->\n).*?(<!-- end -->)", re.DOTALL)
VALUE = re.compile(r"(<!--= ([^|>]+?) \| ([^>]+?) -->).*?(<!--/-->)", re.DOTALL)


def fill(path: Path, runs: Sequence[Run], study_file: Path) -> int:
    """Fill the document at `path`. Returns the exit status. Raises UserError for a mark that nothing fits; the document is then
    as it was."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a Markdown document") from None
    study = read_study(study_file)
    new = filled(text, runs, study, path)
    draw(new, runs, study, path)
    write_atomically(path, new)
    return 0


def draw(text: str, runs: Sequence[Run], study: Study, path: Path) -> None:
    """The pictures of a document, in the folder that has its name."""
    from nemo_amft import report
    from nemo_amft.observe import figures

    groups = report.by_name(runs)
    for kind, name in (match[2].split() for match in BLOCK.finditer(text) if match[2] != "cost"):
        shown = {cell: groups[cell] for cell in study.tables[name].cells}
        if kind == "accuracy":
            sets = dict.fromkeys(found for group in shown.values() for run in group for found in run.sets)
            accuracy = {found: {cell: [run.final(found) for run in group] for cell, group in shown.items()} for found in sets}
            figures.ends(accuracy, path.parent / picture(path, kind, name))
        elif kind == "mu":
            records = {cell: [run.records for run in group] for cell, group in shown.items()}
            figures.mu_of_runs(records, path.parent / picture(path, kind, name))


def picture(path: Path, kind: str, name: str) -> str:
    """Where a picture lies, seen from the document at `path`."""
    return f"{path.stem}/{kind}_{name}.png"


def filled(text: str, runs: Sequence[Run], study: Study, where: Path) -> str:
    """`text`, of the document at `where`, with its marked places filled. Raises UserError as `fill` does."""
    from nemo_amft import report

    target = study.target or report.default_target(runs)
    columns = {column[0]: column for column in report.columns(runs, target, study.reference)}
    for name in dict.fromkeys(name for run in runs for name in run.sets):
        title = f"{name} after warm-up"
        columns[title] = (title, lambda run, name=name: run.after_warm_up(name), columns["final accuracy"][2])
    columns["final validation"] = ("final validation", lambda run: run.final("validation"), columns["final accuracy"][2])
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
            rows = [run for cell in chosen.cells for run in group(cell)]
            body = report.table(rows, shown) if kind == "table" else f"![{kind}, {name}]({picture(where, kind, name)})\n"
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
