"""Print what a configuration will do, without GPU, model or data: batches, parameters, memory of a rank, and refusals.

Any number of processes may be planned for. The exit status is 2 if the configuration would be refused.
"""

from __future__ import annotations

import sys

from nemo_amft.config import load, rules
from nemo_amft.config.schema import Config
from nemo_amft.planning import Row, batch_table, memory_table


def plan(config: Config) -> int:
    """Print the tables, then every refusal on stderr."""
    refusals = list(rules.violations(config, on_this_machine=False))
    if not rules.ranges(config) and rules.data_parallel_size(config):
        _print("batches", batch_table(config))
        _print("model", memory_table(config) or [("parameters", f"unknown: the config of {config.model.path} is not here")])
    for refusal in refusals:
        print(f"nemo_amft: error: {refusal}", file=sys.stderr)
    return 2 if refusals else 0


def _print(title: str, rows: list[Row]) -> None:
    print(title)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def main() -> None:
    """Entry point."""
    load.main(plan, __doc__ or "", check=False, nemo=False)


if __name__ == "__main__":
    main()
