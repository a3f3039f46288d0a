"""A study's document: everything in it that is a number comes from the runs.

Places are marked in the Markdown, in comments that readers do not see. Between such a line and the next <!-- end --> comes

    <!-- table NAME -->        the study's table NAME (`tables` in its file), with a row for cells that were not run, too
    <!-- accuracy NAME -->     a picture of how accurate the table's cells are in the end, on all sets of problems
    <!-- mu NAME -->           a picture of the table's cells' mu over the steps
    <!-- cost -->              how many runs there were and how long they took

and in the middle of a sentence <!--= CELL | COLUMN -->..<!--/--> a cell's value in a column of the tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_amft.observe import tables
from nemo_amft.observe.files import write_atomically
from nemo_amft.observe.runs import Run
from nemo_amft.types import UserError

BLOCK = re.compile(r"(<!-- ((?:table|accuracy|mu) \S+|cost) -->\n).*?(<!-- end -->)", re.DOTALL)
VALUE = re.compile(r"(<!--= ([^|>]+?) \| ([^>]+?) -->).*?(<!--/-->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """One table of a study's document."""

    cells: list[str]
    """Rows, by name."""
    columns: list[str]
    """By their titles in the report."""


def fill(path: Path, runs: Sequence[Run], known: Mapping[str, Table], target: float, reference: str | None) -> None:
    """Fill the document at `path` with the tables of `known`, and draw its pictures. Arguments as for `filled`.

    Raises UserError for a mark that nothing fits; the document is then as it was.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a Markdown document") from None
    new = filled(text, runs, known, target, reference, path)
    _draw(new, runs, known, path)
    write_atomically(path, new)


def filled(
    text: str, runs: Sequence[Run], known: Mapping[str, Table], target: float, reference: str | None, where: Path
) -> str:
    """`text`, of the document at `where`, with its marked places filled.

    `target`: the validation accuracy that rollouts are counted to. `reference`: the cell whose accuracy the others' stands
    less, seed by seed. Raises UserError as `fill` does.
    """
    columns = _columns(runs, target, reference)
    groups = tables.by_name(runs)

    def group(name: str) -> list[Run]:
        if name not in groups:
            raise UserError(f"{where}: found the cell {name!r}, expected one that was run: {', '.join(groups)}")
        return groups[name]

    def column(name: str) -> tables.Column:
        if name not in columns:
            raise UserError(f"{where}: found the column {name!r}, expected one of {', '.join(columns)}")
        return columns[name]

    def block(match: re.Match[str]) -> str:
        kind, _, name = match[2].partition(" ")
        if kind == "cost":
            body = _cost(runs)
        elif name in known:
            shown = [column(title) for title in known[name].columns]
            rows = {cell: groups.get(cell, []) for cell in known[name].cells}
            body = tables.table(rows, shown) if kind == "table" else f"![{kind}, {name}]({_picture(where, kind, name)})\n"
        else:
            raise UserError(f"{where}: found the table {name!r}, expected one of {', '.join(known)}")
        return f"{match[1]}\n{body}\n{match[3]}"

    text = BLOCK.sub(block, text)
    return VALUE.sub(lambda match: f"{match[1]}{tables.cell(group(match[2]), column(match[3]))}{match[4]}", text)


def _columns(runs: Sequence[Run], target: float, reference: str | None) -> dict[str, tables.Column]:
    """The report's columns by their titles, and where runs stood before and at the end of training."""
    found = {column[0]: column for column in tables.columns(runs, target, reference)}
    percent = found["final accuracy"][2]
    for name in dict.fromkeys(name for run in runs for name in run.sets):
        title = f"{name} after warm-up"
        found[title] = (title, lambda run, name=name: run.after_warm_up(name), percent)
    found["final validation"] = ("final validation", lambda run: run.final("validation"), percent)
    return found


def _draw(text: str, runs: Sequence[Run], known: Mapping[str, Table], path: Path) -> None:
    from nemo_amft.observe import figures  # slow to import, and most who ask for tables want no pictures

    groups = tables.by_name(runs)
    for kind, name in (match[2].split() for match in BLOCK.finditer(text) if match[2] != "cost"):
        shown = {cell: groups[cell] for cell in known[name].cells if cell in groups}
        if kind == "accuracy":
            sets = dict.fromkeys(found for group in shown.values() for run in group for found in run.sets)
            accuracy = {found: {cell: [run.final(found) for run in group] for cell, group in shown.items()} for found in sets}
            figures.ends(accuracy, path.parent / _picture(path, kind, name))
        elif kind == "mu":
            records = {cell: [run.records for run in group] for cell, group in shown.items()}
            figures.mu_of_runs(records, path.parent / _picture(path, kind, name))


def _picture(path: Path, kind: str, name: str) -> str:
    """Where a picture lies, seen from the document at `path`: in the folder that has the document's name."""
    return f"{path.stem}/{kind}_{name}.png"


def _cost(runs: Sequence[Run]) -> str:
    unfinished = sum(not run.finished for run in runs)
    hours = sum(run.wall_seconds or 0.0 for run in runs) / 3600
    steps = sum(r["phase"] == "train" for run in runs for r in run.records)
    rollouts = sum(r.get("data/samples") or 0.0 for run in runs for r in run.records)
    return (
        f"{len(runs)} runs ({unfinished} unfinished), with {steps:,} training steps and {rollouts:,.0f} rollouts in all, took "
        f"{hours:.1f} hours of one process.\n"
    )
