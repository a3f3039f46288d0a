"""nemo_amft's side of sft_step.py: SFT updates as warm-up makes them, a turn at a time.

Started by sft_step.py as one process a rank; its argument is a JSON object of settings.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from interleave import Channel


def main() -> None:
    channel = Channel()
    settings = json.loads(sys.argv[1])
    from transformers import AutoConfig

    from nemo_amft.algorithms.methods.base import Demonstration, sft_term
    from nemo_amft.algorithms.update import update_policy
    from nemo_amft.config.schema import ModelConfig, OptimConfig
    from nemo_amft.models.builder import build_policy
    from nemo_amft.models.hub_weights import load_hub_weights
    from nemo_amft.models.policy import Policy
    from nemo_amft.models.trainable import set_schedule
    from nemo_amft.observe.quiet import quiet_libraries
    from nemo_amft.observe.timers import PhaseTimers
    from nemo_amft.parallel import groups, platform
    from nemo_amft.types import Example, TokenSequence

    quiet_libraries()
    model = ModelConfig(path=settings["model"], **settings["layout"])
    optim = OptimConfig(
        lr=settings["lr"], weight_decay=settings["weight_decay"], lr_decay_style="constant", lr_warmup_ratio=0.0
    )
    place = groups.initialize(model, seed=1)
    config = AutoConfig.from_pretrained(settings["model"])
    with platform.megatron():
        chunks = build_policy(config, model, "32")
        load_hub_weights(chunks, config, Path(settings["model"]))
        policy = Policy(chunks, model, optim, "32", place)
    schedule = policy.scheduler(optim.lr, 0.0, 1000, 0.0, "constant")
    rows = [json.loads(line) for line in Path(settings["data"]).read_text().splitlines()]
    example, size = Example("", (), ""), settings["batch"]
    demonstrations = [
        Demonstration(example, TokenSequence(tuple(r["input_ids"]), tuple(x != -100 for x in r["labels"]))) for r in rows
    ]
    batches = itertools.cycle(demonstrations[i : i + size] for i in range(0, len(rows), size))
    timers = PhaseTimers()

    def step() -> dict[str, float]:
        batch = next(batches)
        set_schedule(schedule, 0)
        term = sft_term(batch)
        term.batch = term.batch.share(place)
        update_policy(policy, [term], lambda _: {}, timers, temperature=1.0)
        policy.gather_parameters()
        tokens = sum(len(d.sequence.tokens) for d in batch)
        return {"tokens": tokens / place.world_size, "steps": 1 / place.world_size}

    def phases() -> dict[str, float]:
        spent = {name.removeprefix("seconds/"): value for name, value in timers.collect().items()}
        return {"gradient": spent.get("sft", 0.0), "optimizer": spent.get("optimizer", 0.0)}

    channel.serve(step, phases)
    groups.shutdown()


if __name__ == "__main__":
    main()
