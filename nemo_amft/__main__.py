"""The console script: `nemo-amft train ...` is `python -m nemo_amft.train ...`."""

from __future__ import annotations

import difflib
import importlib
import sys

# Named here with a line each, so that the list costs no import.
COMMANDS = {
    "train": "fine-tune a model",
    "evaluate": "evaluate a checkpoint or a hub model",
    "convert": "turn checkpoints into hub format, and other formats into it",
    "compare": "compare two evaluations, problem by problem",
    "report": "compare runs",
    "study": "run many cells with many seeds, and report on them",
    "plan": "show what a configuration will do, without running it",
    "doctor": "check this machine",
}


def main() -> None:
    """Hand the command line over to the command's module. Exit status 2 for an unknown one."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print("usage: nemo-amft COMMAND ...\n")
        print("\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))
        sys.exit(0)
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1, 0.0)[0]
        print(f"nemo_amft: error: {command}: no such command; did you mean {near}?", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"nemo-amft {command}", *sys.argv[2:]]
    sys.exit(importlib.import_module(f"nemo_amft.{command}").main())


if __name__ == "__main__":
    main()
