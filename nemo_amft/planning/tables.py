"""Numbers with units, and rows of text, aligned."""

from __future__ import annotations

from collections.abc import Sequence

Row = tuple[str, str]


def rows(title: str, found: Sequence[Row]) -> str:
    """A title and `name  value` lines; values that begin with a number end in one column."""
    width = max(len(name) for name, _ in found)
    lengths = [len(_number(value)) for _, value in found]
    numeric = max(lengths)
    aligned = [
        f"  {name:<{width}}  {' ' * (numeric - n if n else 0)}{value}" for (name, value), n in zip(found, lengths, strict=True)
    ]
    return "\n".join([title, *aligned])


def grid(title: str, header: Sequence[str], found: Sequence[Sequence[str]]) -> str:
    """A table with a header, columns aligned to the right."""
    widths = [max(len(row[i]) for row in [header, *found]) for i in range(len(header))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in [header, *found]]
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)])


def gib(size: float) -> str:
    """Bytes in GiB, or in MiB where that shows more."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 or not size else f"{size / 2**20:.2f} MiB"


def pflop(flops: float) -> str:
    """FLOPs in the unit that keeps three digits or so before the point."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= 10 * size:
            return f"{flops / size:,.1f} {unit}"
    return f"{flops / 1e9:,.1f} GFLOP"


def _number(value: str) -> str:
    """The part of a value up to its unit, where it is a quantity of fixed digits (so that points stand under each other)."""
    head, _, unit = value.partition(" ")
    return head if unit.split(" ")[0] in ("GiB", "MiB", "s", "EFLOP", "PFLOP", "TFLOP", "GFLOP") else ""
