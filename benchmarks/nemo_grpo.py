"""nemo_amft's side of grpo_step.py: the trainer's own step of method=grpo, a turn at a time.

Started by grpo_step.py as one process a rank. Arguments: "fixed" or "mixed" lengths of responses, and the configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path

from interleave import Channel

from nemo_amft.tasks.arithmetic.task import ArithmeticTask
from nemo_amft.tasks.base import Verifier

sys.path.insert(0, str(Path(__file__).parent))  # a plug-in is imported by its file


class DigitsTask(ArithmeticTask):
    """Arithmetic's prompts, rewarded so that a policy with random weights earns different rewards."""

    def verifier(self) -> Verifier:
        from digits import verify

        return verify


def main() -> None:
    channel = Channel()
    from nemo_amft.algorithms.build import build_parts, load_model
    from nemo_amft.algorithms.run_data import load_data
    from nemo_amft.algorithms.trainer import Trainer
    from nemo_amft.config.load import load
    from nemo_amft.data.chat import ChatTemplate
    from nemo_amft.observe.quiet import quiet_libraries
    from nemo_amft.parallel import groups, platform

    quiet_libraries()
    platform.install()
    fixed, arguments = sys.argv[1] == "fixed", sys.argv[2:]
    config = load(arguments)
    place = groups.initialize(config.model, config.trainer.seed)
    run_dir = Path(config.exp_manager.explicit_log_dir)
    hub = load_model(config, run_dir, place)
    chat = ChatTemplate(hub.tokenizer, config.data.max_demonstration_tokens)
    task = config.task.build(config.data, config.trainer.seed)
    parts = build_parts(config, run_dir, place, [], hub, task, chat, load_data(config, task, chat))
    if fixed:
        parts.sampler.stop_token_ids = ()  # nothing ends a response but the limit
    trainer = Trainer(parts)
    position = iter(range(config.trainer.max_steps))

    def step() -> dict[str, float]:
        metrics = trainer.train_step(next(position))
        length = metrics["response_length/mean"]
        assert not fixed or length == config.rollout.max_new_tokens, length
        samples = config.data.prompts_per_step * config.data.samples_per_prompt / place.world_size
        return {"samples": samples, "tokens": samples * length, "steps": 1 / place.world_size}

    def phases() -> dict[str, float]:
        spent = {name.removeprefix("seconds/"): value for name, value in parts.timers.collect().items()}
        return {
            "generation": spent.get("rollout", 0.0),
            "training": sum(spent.get(name, 0.0) for name in ("logprob", "rl", "optimizer")),
            "reward": spent.get("reward", 0.0),
            "sync": spent.get("sync", 0.0),
        }

    channel.serve(step, phases)
    if parts.sampler.rewards is not None:
        parts.sampler.rewards.close()
    parts.engine.close()
    groups.shutdown()


if __name__ == "__main__":
    main()
