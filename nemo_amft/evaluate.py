"""Entry point: `python -m nemo_amft.evaluate [--config-name NAME] checkpoint=RUN_OR_MODEL benchmarks.NAME=SOURCE`"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nemo_amft.config import override, typed
from nemo_amft.config.load import main as run_with_config
from nemo_amft.config.schema import Config
from nemo_amft.evaluation.checkpoint import hub_model_of
from nemo_amft.parallel import signals

CONFIGURATION = "evaluate"
"""conf/evaluate.yaml, where no --config-name is given."""

OWN = "checkpoint"
"""The argument that is no key of the configuration."""


def evaluate(config: Config, checkpoint: str | None = None) -> int:
    """Scores on the benchmarks of `config`, or else on its task's test problems; `checkpoint` is a run directory, a checkpoint,
    or a model in hub format."""
    from nemo_amft.algorithms.evaluate_run import evaluate_run

    return evaluate_run(config, checkpoint)


def completed(arguments: Sequence[str]) -> list[str]:
    """The command line with what may be left out: the configuration, and the hub model as model.path, so that what the model
    cannot do (lengths, layouts) is refused before anything is built."""
    given = [f"{OWN}={typed.at_home(a.partition('=')[2])}" if a.startswith(f"{OWN}=") else a for a in arguments]
    if not any(a.split("=")[0] in ("--config-name", "-cn") for a in given):
        given += ["--config-name", CONFIGURATION]
    named = next((a.partition("=")[2] for a in given if a.startswith(f"{OWN}=")), None)
    path = hub_model_of(named) if named else None
    if path is not None and not any(a.lstrip("+").startswith("model.path=") for a in given):
        given.append(override.argument("model.path", path))
    return given


def main() -> None:
    signals.listen()  # before the heavy imports, as in train.py
    description = "Evaluate a checkpoint or a hub model on benchmarks, or on its task's test problems."
    run_with_config(evaluate, description, own=(OWN,), arguments=completed(sys.argv[1:]))


if __name__ == "__main__":
    main()
