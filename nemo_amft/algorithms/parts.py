"""What a run is made of, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nemo_amft.algorithms.controllers.base import Controller
from nemo_amft.algorithms.methods.base import Method
from nemo_amft.algorithms.run_data import RunData
from nemo_amft.algorithms.sampling import Sampler
from nemo_amft.algorithms.throughput import Throughput
from nemo_amft.config.schema import Config
from nemo_amft.data.streams import Stream
from nemo_amft.models.critic import Critic
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import ForwardModel
from nemo_amft.observe.metrics import NullMetricsWriter
from nemo_amft.observe.progress import Progress
from nemo_amft.observe.rollouts import RolloutWriter
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel.groups import Place
from nemo_amft.types import RolloutEngine


@dataclass
class Parts:
    """What a run is made of (built by algorithms/build.py)."""

    config: Config
    run_dir: Path
    place: Place
    method: Method
    controller: Controller
    policy: Policy
    critic: Critic | None
    reference: ForwardModel | None
    engine: RolloutEngine
    sampler: Sampler
    streams: dict[str, Stream]
    """demonstrations (D_SFT, where the data has some), prompts, meta (D_val, for grad U)."""
    data: RunData
    timers: PhaseTimers
    throughput: Throughput
    writer: NullMetricsWriter
    progress: Progress
    rollout_log: RolloutWriter
    stop: Callable[[], str | None]
    """Why all ranks are to stop now, or None (signals.StopRequests.agreed). Collective."""
    vocabulary: int
    """Tokens that the policy chooses among."""


@dataclass
class Progression:
    """How far a run is: what a resumed one continues from."""

    warmup_step: int = 0
    step: int = 0
    target_entropy: float | None = None
    critic_step: int = 0
    """Steps of the critic's warm-up."""
    validated: int = -1
    """The last step whose evaluation is done: one that was broken off is made again by the run that continues."""
    accuracy: dict[str, float] = field(default_factory=dict)
    """Evaluations by name, kept for the summary: warmup, best, final."""
    seconds: float = 0.0
    """Wall time from the models being built, over all processes of the run."""
    weight_norms: dict[str, float] = field(default_factory=dict)
    """Of policy and critic at the last good checkpoint, or at the start."""
    skipped_updates: int = 0
    """Steps with an update whose gradient was not finite."""
    generated_tokens: int = 0
    trained_tokens: int = 0
