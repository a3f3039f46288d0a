"""Entry point: `python -m nemo_amft.evaluate --config-name NAME checkpoint=RUN_OR_MODEL key=value ...`"""

from __future__ import annotations

from nemo_amft.config.load import main as run_with_config
from nemo_amft.config.schema import Config


def evaluate(config: Config, checkpoint: str | None = None) -> int:
    """Accuracy on the test problems of `config`; `checkpoint` is a run directory, a checkpoint, or a model in hub format."""
    from nemo_amft.algorithms.evaluate_run import evaluate_run

    return evaluate_run(config, checkpoint)


def main() -> None:
    run_with_config(evaluate, "Evaluate a checkpoint or a hub model on the test problems.", own=("checkpoint",))


if __name__ == "__main__":
    main()
