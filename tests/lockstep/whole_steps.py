"""Steps of policy, critic and controller with the meta-gradient, a checkpoint, and what a sync brings, on any layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from nemo_amft.algorithms.meta_gradient import KeptDifference
from nemo_amft.models.checkpoints import Checkpoints, layout
from nemo_amft.models.hub_weights import export_hub_weights
from tests.parallel.meta_steps import Case, Session


@dataclass(frozen=True)
class Outcome:
    """What a rank has at the end."""

    metrics: list[dict[str, float]]
    """Of each step."""
    weights: dict[str, torch.Tensor]
    """As a sync would bring them to this rank's engine."""


def two_steps_and_a_third(folder: str, case: Case, checkpoints: str) -> Outcome:
    """Two steps, a checkpoint, a third step."""
    session = Session(folder, case)
    metrics = [session.step(t) for t in range(2)]
    trainer = {"layout": layout(session.place, session.policy), "controller": session.controller.state_dict()}
    models = {"policy": session.policy, "critic": session.critic}
    Checkpoints(Path(checkpoints), 1, session.place).save(2, models, trainer, {"kept": vars(session.meta.kept)})
    return _outcome(folder, session, [*metrics, session.step(2)])


def third_step(folder: str, case: Case, checkpoints: str) -> Outcome:
    """The step after the checkpoint, by ranks that have made none."""
    session = Session(folder, case)
    store = Checkpoints(Path(checkpoints), 1, session.place)
    path = store.newest_intact()
    assert path is not None
    trainer, rank_state = store.load(path, {"policy": session.policy, "critic": session.critic})
    assert rank_state is not None
    session.controller.load_state_dict(trainer["controller"])
    session.meta.kept = KeptDifference(**rank_state["kept"])
    return _outcome(folder, session, [session.step(2)])


def _outcome(folder: str, session: Session, metrics: list[dict[str, float]]) -> Outcome:
    exported = export_hub_weights(session.policy.chunks, AutoConfig.from_pretrained(folder), 1 << 14)
    return Outcome(metrics, {name: tensor.clone() for name, tensor in exported})
