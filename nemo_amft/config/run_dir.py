"""The run directory and the loggers, made by NeMo's exp_manager.

exp_manager wants a Lightning Trainer. As in NeMo-Aligner, ours carries nodes, devices and loggers and trains nothing. It stays
on the CPU, so it touches neither the GPU nor torch.distributed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from nemo_amft.config import launcher
from nemo_amft.config.schema import Config, ExpManagerConfig
from nemo_amft.config.typed import at_home
from nemo_amft.config.validate import mask_argument
from nemo_amft.observe.files import write_atomically
from nemo_amft.types import UserError


def run_dir(exp_manager: ExpManagerConfig) -> Path:
    """Where the run's files go: explicit_log_dir, or exp_dir/name."""
    if exp_manager.explicit_log_dir is not None:
        return Path(exp_manager.explicit_log_dir)
    return Path(exp_manager.exp_dir or ".") / exp_manager.name


OUTPUTS = ("checkpoints", "config.yaml", "evaluation.json", "figures", "hf", "metrics.jsonl", "rollouts", "summary.json")
"""What runs and evaluations write over."""

OURS = ("cmd-args.log", "run.lock")
"""What every job leaves before it writes any of these (exp_manager, parallel/run_lock.py)."""


def refuse_foreign_files(path: Path) -> None:
    """Raises UserError where a run in `path` would replace files that no run has written."""
    found = [name for name in OUTPUTS if (path / name).exists()]
    if found and not any((path / name).exists() for name in OURS):
        raise UserError(
            f"exp_manager: found {', '.join(found)} in {path}, of no run of this program, expected a new folder or a run's "
            "(exp_manager.name, exp_manager.explicit_log_dir)"
        )


SHARED_WITHIN_S = 30.0
"""How long a network file system may take to show one node what another has written."""


def check_folder(path: Path, within_s: float = SHARED_WITHIN_S) -> None:
    """On every rank, once rank 0 has its run.lock in the run directory `path`: raises UserError where the folder is not there
    too, or cannot be written to. Else a job finds out when it saves for the first time."""
    me, deadline = f"rank {launcher.rank()} on {socket.gethostname()}", time.monotonic() + within_s
    while not (path / "run.lock").exists():
        if time.monotonic() > deadline:
            raise UserError(f"{path}: found nothing of rank 0's there on {me}, expected a folder that all nodes share")
        time.sleep(0.5)
    for folder in (path, *(path / name for name in ("checkpoints", "rollouts", "figures"))):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: cannot be written to by {me}, expected a folder for the run")


def prepare(config: Config) -> list[Any]:
    """Make the run directory, new or to be continued. Returns Lightning's loggers, none on ranks but 0, which do not write."""
    if launcher.rank() != 0:
        return []
    path = run_dir(config.exp_manager)
    with _quiet():
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins.environments import LightningEnvironment
        from lightning.pytorch.utilities import rank_zero_only
        from nemo.utils import exp_manager as nemo
        from nemo.utils import logging as nemo_logging

        trainer = Trainer(
            accelerator="cpu",
            num_nodes=config.trainer.num_nodes,
            devices=config.trainer.devices,
            max_steps=config.trainer.max_steps,
            # Left to itself Lightning sees Slurm, and then refuses jobs that give --ntasks instead of --ntasks-per-node.
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        rank_zero_only.rank = 0  # the loggers go by this
        # exp_manager's check_resume looks for Lightning's checkpoints and moves every file of a run directory in use,
        # metrics.jsonl included, to run_0/. Resuming is the trainer's own affair here.
        with mock.patch.object(nemo, "check_resume"), _masked_argv():
            nemo.exp_manager(trainer, _settings(config.exp_manager, path))
        # Both would hand on what every library says, at INFO.
        nemo_logging.setLevel(logging.ERROR)
        logging.getLogger().setLevel(logging.WARNING)
    return list(trainer.loggers)


def _wandb_id(ours: ExpManagerConfig, path: Path) -> dict[str, str]:
    """WandbLogger's arguments that let a job that continues a run continue its W&B run too, instead of starting another: an id
    that is kept in the run directory. Nothing where the user gave an id."""
    if not ours.create_wandb_logger or "id" in ours.wandb_logger_kwargs:
        return {}
    file = path / "wandb_id.txt"
    if not file.exists():
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(file, uuid.uuid4().hex[:12] + "\n")
    return {"id": file.read_text(encoding="utf-8").strip(), "resume": "allow"}


def _settings(ours: ExpManagerConfig, path: Path) -> dict[str, Any]:
    """exp_manager's own configuration: our folder as it is, and none of the callbacks that need Lightning's loop."""
    wandb = {"name": ours.name, "project": "nemo_amft", **_wandb_id(ours, path), **ours.wandb_logger_kwargs}
    wandb |= {key: at_home(wandb[key]) for key in ("save_dir", "dir") if isinstance(wandb.get(key), str)}
    return {
        "explicit_log_dir": str(path),
        "create_tensorboard_logger": ours.create_tensorboard_logger,
        "create_wandb_logger": ours.create_wandb_logger,
        "wandb_logger_kwargs": wandb,
        "use_datetime_version": False,
        "create_checkpoint_callback": False,
        "create_preemption_callback": False,
        "disable_validation_on_resume": False,
        "log_step_timing": False,
        "log_tflops_per_sec_per_gpu": False,
        "seconds_to_sleep": 0,  # other ranks would wait for rank 0 to move the files that nobody moves
    }


@contextlib.contextmanager
def _masked_argv() -> Iterator[None]:
    """exp_manager writes the command line to cmd-args.log; a secret given there stays out of it."""
    with mock.patch.object(sys, "argv", [mask_argument(argument) for argument in sys.argv]):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's and NeMo's notices speak of a training loop that is not theirs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
