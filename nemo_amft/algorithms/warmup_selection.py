"""Warm-up's best step by validation: what a run of two stages hands from the first to the second."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch.distributed as dist

from nemo_amft.algorithms.evaluation import evaluate
from nemo_amft.models.checkpoints import Checkpoints, layout

if TYPE_CHECKING:
    from nemo_amft.algorithms.trainer import Trainer


class WarmUpSelection:
    """Validates every `warmup.select_every` steps and keeps the policy of the best (of equals the latest), optimiser included,
    in warmup_best/. What is best so far is part of the run's progress, so a resumed run goes on choosing."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.every = trainer, trainer.config.warmup.select_every
        p = trainer.parts
        # Two: a run killed before its next checkpoint comes back to the best but one.
        self.store = Checkpoints(p.run_dir / "warmup_best", 2, p.place)
        self._reconcile()

    def _reconcile(self) -> None:
        """Make what is stored agree with the progress, which a resumed run may have taken from an earlier step.

        Later steps than that go: they will be made again, and pruning by number would take them for the newest. A best step
        that is no longer stored is forgotten: only a later and better one can have driven it out, which will be found again.
        """
        progress, p = self.trainer.progress, self.trainer.parts
        if p.place.is_main:
            for path in self.store.paths():
                if int(path.name.removeprefix("step_")) > progress.warmup_step:
                    shutil.rmtree(path)
        dist.barrier()
        newest = self.store.newest_intact(p.progress.message)
        selected = progress.accuracy.get("selected/step")
        if selected is not None and (newest is None or newest.name != f"step_{int(selected):08d}"):
            del progress.accuracy["selected/step"], progress.accuracy["selected/validation"]

    def look(self, steps: int) -> dict[str, float]:
        """Validate the policy after `steps` steps, if that is due. Returns metrics."""
        if not self.every or (steps % self.every and steps != self.trainer.config.warmup.steps):
            return {}
        p, v = self.trainer.parts, self.trainer.config.validation
        self.trainer.sync()
        examples = p.data.validation[: v.prompts]
        with self.trainer.awake(), p.timers("validation"):
            length = self.trainer.config.rollout.max_new_tokens
            sources = p.data.prompt_sources
            metrics, _ = evaluate(p.sampler, "validation", examples, v.samples, length, v.temperature, sources)
        accuracy = self.trainer.progress.accuracy
        if metrics["validation/accuracy"] >= accuracy.get("selected/validation", 0.0):
            accuracy |= {"selected/validation": metrics["validation/accuracy"], "selected/step": float(steps)}
            p.policy.gather_parameters()
            self.store.save(steps, {"policy": p.policy}, {"layout": layout(p.place, p.policy)}, {})
        return metrics

    def hand_over(self) -> None:
        """Go back to the best step's policy."""
        step = self.trainer.progress.accuracy.get("selected/step")
        if step is None:
            return
        p = self.trainer.parts
        self.store.load(self.store.folder / f"step_{int(step):08d}", {"policy": p.policy})
        p.progress.message(f"warm-up hands over step {step:.0f}, the best by validation")
