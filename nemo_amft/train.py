"""Entry point: `torchrun --nproc-per-node N -m nemo_amft.train --config-name NAME key=value ...`"""

from __future__ import annotations

from nemo_amft.config.load import main as run_with_config
from nemo_amft.config.schema import Config


def train(config: Config) -> int:
    """One run, from start or from its newest intact checkpoint."""
    from nemo_amft.algorithms.run import run

    return run(config)


def main() -> None:
    run_with_config(train, "Fine-tune a policy: SFT warm-up, then demonstrations and rollouts in every step.")


if __name__ == "__main__":
    main()
