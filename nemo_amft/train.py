"""Entry point: `torchrun --nproc-per-node N -m nemo_amft.train --config-name NAME key=value ...`"""

from __future__ import annotations

from nemo_amft.config.schema import Config
from nemo_amft.observe import start_up
from nemo_amft.parallel import signals


def train(config: Config) -> int:
    """One run, from start or from its newest intact checkpoint."""
    start_up.mark("configuration")
    from nemo_amft.algorithms.run import run

    start_up.mark("imports")
    return run(config)


def main() -> None:
    signals.listen()  # before the heavy imports: a signal would kill the process, and threads they start would hear it
    start_up.mark("interpreter")
    from nemo_amft.config.load import main as run_with_config

    run_with_config(train, "Fine-tune a policy: SFT warm-up, then demonstrations and rollouts in every step.")


if __name__ == "__main__":
    main()
