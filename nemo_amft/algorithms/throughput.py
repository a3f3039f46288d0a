"""Tokens a second, and the share of the device's arithmetic that the model's own FLOPs make up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_amft.algorithms.methods.base import Group, Term
from nemo_amft.config.architecture import Architecture
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import platform
from nemo_amft.planning.flops import forward_flops, generation_flops, training_flops
from nemo_amft.types import TokenSequence

TRAINING_PHASES = ("value", "logprob", "critic", "optimizer")
"""And the phases of the terms, which have their names."""
OTHER_PHASES = ("rollout", "reward", "sync", "meta")
"""The rest of a step; validation, checkpoints and probes are not part of one."""


class Throughput:
    """Counts the work of a step. Batches are global ones, FLOPs those of all ranks together.

    Model FLOPs utilisation (PaLM, appendix B, arXiv 2204.02311): FLOPs that the model needs over FLOPs that the devices could
    have done. Recomputed activations and padding count as nothing, so they lower it.
    """

    def __init__(self, architecture: Architecture | None, peak: float, ranks: int, timers: PhaseTimers):
        """`architecture` None: no FLOPs are logged. `peak`: FLOP/s of one rank's device."""
        self.architecture, self.peak, self.ranks, self.timers = architecture, peak, ranks, timers

    def step(self, groups: Sequence[Group], terms: Sequence[Term], meta: Sequence[Group] = ()) -> dict[str, float]:
        """Metrics of a step that drew `groups`, trained on `terms` and estimated a meta-gradient from `meta`. Call before the
        timers are collected."""
        drawn = sum(s.num_tokens for group in groups for s in group.samples)
        trained = sum(len(s.tokens) for term in terms for s in term.batch.sequences)
        phases = (*TRAINING_PHASES, *dict.fromkeys(term.name for term in terms))
        # By identity: some methods train on a sequence in two terms.
        sequences = {id(s): s for term in terms for s in term.batch.sequences}.values()
        # Only what the engine drew has its log-probs.
        demonstrations = sum(s.behavior_log_probs is None for s in sequences)
        found = {
            "data/samples": float(sum(len(group.samples) for group in (*groups, *meta))),
            "data/demonstrations": float(demonstrations),
            "data/demonstration_share": demonstrations / max(len(sequences), 1),
            "tokens_per_second/training": self.timers.per_second(trained, *phases),
            "memory/peak": float(platform.peak_memory_bytes()),
        }
        if groups:
            found["tokens_per_second/generation"] = self.timers.per_second(drawn, "rollout")
        return found | self._utilisation(groups, terms, meta, phases)

    def _utilisation(
        self, groups: Sequence[Group], terms: Sequence[Term], meta: Sequence[Group], phases: Sequence[str]
    ) -> dict[str, float]:
        if self.architecture is None:
            return {}
        flops = sum(self._training(term) for term in terms)
        training = self.timers.per_second(flops, *phases) / self.ranks
        found = {"perf/training_tflops": training / 1e12, "perf/mfu": training / self.peak}
        if groups:
            flops += generated_flops(self.architecture, [*groups, *meta])
            flops += training_flops(self.architecture, *_sizes(s.sequence for group in meta for s in group.samples))
            whole = self.timers.per_second(flops, *phases, *OTHER_PHASES) / self.ranks
            found["perf/mfu_step"] = whole / self.peak
        return found

    def _training(self, term: Term) -> float:
        """FLOPs of everything that is computed over a term's sequences: policy, critic, old and reference log-probs."""
        shape = self.architecture
        assert shape is not None
        lengths, trained = _sizes(term.batch.sequences)
        flops = training_flops(shape, lengths, trained)
        for need in term.needs:
            if need == "value":  # once for the advantages, once to learn
                flops += forward_flops(shape, lengths, trained, output=False)
                flops += training_flops(shape, lengths, trained, output=False)
            else:
                flops += forward_flops(shape, lengths, trained)
        return flops


def generated_flops(architecture: Architecture, groups: Sequence[Group]) -> float:
    """FLOPs of drawing the responses of `groups`, each with its own pass over the prompt."""
    samples = [s for group in groups for s in group.samples]
    prompts = [len(s.sequence.tokens) - s.num_tokens for s in samples]
    return generation_flops(architecture, prompts, [s.num_tokens for s in samples])


def _sizes(sequences: Iterable[TokenSequence]) -> tuple[list[int], int]:
    """(positions of each sequence, trained tokens)."""
    rows = list(sequences)
    return [len(s.tokens) - 1 for s in rows], sum(s.num_trained for s in rows)
