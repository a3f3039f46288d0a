"""What a configuration may have become by the time its run is continued. By key:

identity    refused: with another of these one folder would hold two runs (IDENTITY)
content     data, model, tokenizer, template: what the files hold decides, whatever they are called, once they have been read
            (algorithms/inputs.py); of a checkpoint that has no fingerprints of it, the keys do (CONTENT)
counts      refused where fewer steps are asked for than have been made (COUNTS)
all others  taken over and printed: the optimiser's numbers, batches, layout, logging
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_amft.config import typed
from nemo_amft.config.rules import lookup
from nemo_amft.config.schema import Config
from nemo_amft.config.validate import resolved
from nemo_amft.types import UserError

IDENTITY = (
    "method",
    "task",
    "controller._target_",
    "reward.function",
    "model.scratch",
    "model.config_overrides",
    "model.chat_template_kwargs",
    "trainer.seed",
)
"""Keys and sections that make a run that run."""

CONTENT = (
    "data.train",
    "data.demonstrations",
    "data.validation",
    "data.validation_size",
    "model.path",
    "model.tokenizer",
    "model.chat_template",
)
"""Keys that say what a run reads and learns from."""

COUNTS = {"trainer.max_steps": "step", "warmup.steps": "warmup_step", "critic.warmup_steps": "critic_step"}
"""Lengths of a run's phases, and what a checkpoint's progress calls the steps made of each."""

OWN_FOLDER = "or a folder of its own (exp_manager.name, exp_manager.explicit_log_dir)"

_WHOLE = ("model.chat_template_kwargs", "model.config_overrides", "benchmarks", "exp_manager.wandb_logger_kwargs")
"""Keys whose value is the user's own mapping: one value, not keys of ours."""


class _Absent:
    def __repr__(self) -> str:
        return "(no such key)"


ABSENT = _Absent()
"""The value of a key that another version of the program has not."""


@dataclass(frozen=True)
class Change:
    """A key whose value is another than when the run was last started."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"


def changes(run_dir: Path, config: Config) -> list[Change]:
    """What is different from the configuration that the run in `run_dir` was last started with; nothing for a new run. Raises
    UserError where `config` is no continuation of it."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return []
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path}: found no configuration, expected the one that the run in this folder was started with")
    before, now = dict(_leaves(values)), dict(_leaves(resolved(config)))
    found = [
        Change(key, before.get(key, ABSENT), now.get(key, ABSENT))
        for key in dict.fromkeys([*now, *before])
        if before.get(key, ABSENT) != now.get(key, ABSENT)
    ]
    for change in found:
        # A key that only one version of the program knows says nothing about the run.
        if ABSENT not in (change.before, change.now) and is_of(change.key, IDENTITY):
            raise UserError(
                f"{change.key}: found {_shown(change.now)}, expected {_shown(change.before)} as in {path} to continue that "
                f"run, {OWN_FOLDER}"
            )
    return found


def refuse_fewer_steps(config: Config, progress: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises UserError where the run of `checkpoint` is past an end that `config` sets. `progress`: its counters."""
    for key, counter in COUNTS.items():
        asked, made = lookup(config, key), progress.get(counter, 0)
        if asked < made:
            raise UserError(f"{key}: found {asked}, expected at least {made}, the steps made by {checkpoint}, {OWN_FOLDER}")


def is_of(key: str, sections: tuple[str, ...]) -> bool:
    """Whether `key` is one of `sections`, or within one."""
    return any(key == section or key.startswith(section + ".") for section in sections)


def _leaves(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = typed.join(section, str(name))
        if isinstance(value, Mapping) and value and key not in _WHOLE:
            yield from _leaves(value, key)
        else:
            yield key, value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and value and "\n" not in value else typed.show(value)
