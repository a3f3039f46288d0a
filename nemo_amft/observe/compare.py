"""Whether two runs computed the same numbers, times aside.

    python -m nemo_amft.observe.compare A/metrics.jsonl B/metrics.jsonl

prints the differences as a unified diff, one hunk a record, and exits 0 where there are none, 1 where there are, 2 where a file
cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from nemo_amft.config.typed import local_path
from nemo_amft.observe.metrics import Record, is_time_key, read_metrics
from nemo_amft.types import UserError

Key = tuple[str, int, int]
"""Phase, step, and which record of that phase and step it is."""


def _by_step(records: Sequence[Record]) -> dict[Key, dict[str, str]]:
    seen: Counter[tuple[str, int]] = Counter()
    table = {}
    for record in records:
        place = (record["phase"], record["step"])
        table[(*place, seen[place])] = {name: json.dumps(value) for name, value in record.items() if not is_time_key(name)}
        seen[place] += 1
    return table


def differences(a: Sequence[Record], b: Sequence[Record]) -> Iterator[str]:
    """Lines of a unified diff from `a` to `b`: a hunk for every record that is not the same in both, to the last digit."""
    of_a, of_b = _by_step(a), _by_step(b)
    for key in dict.fromkeys([*of_a, *of_b]):
        before, after = of_a.get(key, {}), of_b.get(key, {})
        if before == after:
            continue
        yield f"@@ {key[0]} step {key[1]} @@"
        for name in dict.fromkeys([*before, *after]):
            if before.get(name) != after.get(name):
                yield from (f"{sign}{name}: {side[name]}" for sign, side in (("-", before), ("+", after)) if name in side)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nemo_amft.observe.compare", description="Compare two runs, times aside.")
    parser.add_argument("a", type=local_path, help="metrics.jsonl of a run, or its folder")
    parser.add_argument("b", type=local_path, help="metrics.jsonl of another run, or its folder")
    args = parser.parse_args(argv)
    try:
        lines = list(differences(read_metrics(args.a), read_metrics(args.b)))
    except UserError as error:
        print(f"nemo_amft: error: {error}", file=sys.stderr)
        return 2
    if lines:
        print(f"--- {args.a}\n+++ {args.b}", *lines, sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
