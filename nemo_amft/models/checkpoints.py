"""Checkpoints: written under a temporary name, sealed with a manifest, renamed; read back only if intact.

checkpoints/step_00000050/
    model/            policy, critic and optimisers, by Megatron's distributed checkpointing (any layout can read it)
    ranks/00000.pt    what belongs to one rank: random generators, the kept difference
    trainer.json      everything else: format of the checkpoint, counters, mu, H*, stream positions
    manifest.json     size and CRC-32 of every other file; written last
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from torch.distributed.checkpoint.api import CheckpointException

from nemo_amft.models.trainable import ForwardModel, TrainableModel
from nemo_amft.observe.files import UnwrittenError, disk_fault, unwritten
from nemo_amft.parallel import platform
from nemo_amft.parallel.groups import Place
from nemo_amft.parallel.reductions import all_agree
from nemo_amft.types import UserError

FORMAT = 2
"""In trainer.json. Before 2, which had none: an optimiser's state may be misplaced (parallel/distributed_optimizer.py, 1)."""
NO_MANIFEST = "manifest.json is missing or unreadable"

log = logging.getLogger(__name__)

# The one format of the distributed optimiser that another tensor, pipeline or data-parallel layout can read.
METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


class Checkpoints:
    """The checkpoints of a run directory. All methods are collective unless they say otherwise."""

    def __init__(self, folder: Path, keep: int, place: Place):
        self.folder, self.keep, self.place = folder, keep, place

    def save(
        self, step: int, models: Mapping[str, ForwardModel], trainer: Mapping[str, Any], rank_state: Mapping[str, Any]
    ) -> Path:
        """Write the state after `step` steps; then delete all but the newest `keep`. Raises UnwrittenError, on the rank that
        finds the disk full or on all: nothing is left of the checkpoint then, and the others are as they were."""
        final = self.folder / f"step_{step:08d}"
        temporary = self.folder / f".writing_{final.name}"
        with self._giving_up(temporary, final):
            self._write(temporary, models, trainer, rank_state)
            if self.place.is_main:
                self._put_in_place(temporary, final)
        dist.barrier()
        return final

    def _write(
        self, folder: Path, models: Mapping[str, ForwardModel], trainer: Mapping[str, Any], rank_state: Mapping[str, Any]
    ) -> None:
        if self.place.is_main:
            for left in self.folder.glob(".writing_*"):  # of a save that was killed: each may be as large as a checkpoint
                shutil.rmtree(left, ignore_errors=True)
            for name in (*models, "ranks"):
                (folder / name).mkdir(parents=True)
            (folder / "trainer.json").write_text(json.dumps(dict(trainer) | {"format": FORMAT}, indent=1))
        dist.barrier()
        for name, model in models.items():  # one after the other: each needs host memory for its optimiser's state
            with platform.megatron():
                dist_checkpointing.save(_sharded(model, loading=False), str(folder / name), _shared_out())
        torch.save(dict(rank_state), folder / "ranks" / f"{self.place.rank:05d}.pt")
        dist.barrier()
        manifest = self._manifest(folder)
        if self.place.is_main:
            (folder / "manifest.json").write_text(json.dumps(manifest))
            _sync_to_disk([folder / "manifest.json", folder])

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        before = temporary.with_name(f".writing_over_{final.name}")
        if final.exists():  # of the same step: out of the way first, as deleting takes long, and a kill may come
            os.replace(final, before)
        os.replace(temporary, final)
        shutil.rmtree(before, ignore_errors=True)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _giving_up(self, temporary: Path, final: Path) -> Iterator[None]:
        """Context of writing a checkpoint. What there is of it is removed where it fails, by rank 0 (the room may be needed to
        say so), and a disk's fault is told as such."""
        try:
            yield
        except CheckpointException as error:  # raised on all ranks, but only rank 0 knows why; no Exception
            fault = disk_fault(error)
            mine = fault, unwritten(final, fault or str(error))
            fault, text = self._from_main(lambda: mine)
            self._remove(temporary)
            dist.barrier()
            raise (UnwrittenError if fault else RuntimeError)(text) from error
        except Exception as error:  # of this rank alone, as far as it knows
            fault = disk_fault(error)
            text = unwritten(final, f"{fault}, on rank {self.place.rank}")
            self._remove(temporary)
            if fault is None:
                raise
            raise UnwrittenError(text) from error

    def _remove(self, folder: Path) -> None:
        if self.place.is_main:
            shutil.rmtree(folder, ignore_errors=True)

    def paths(self) -> list[Path]:
        """Sealed checkpoints, oldest first (not collective)."""
        return sorted(self.folder.glob("step_*")) if self.folder.is_dir() else []

    def newest_intact(self, say: Callable[[str], None] = log.warning) -> Path | None:
        """The newest checkpoint whose files are as they were written. A damaged one is reported by name and passed over."""
        for name in self._from_main(lambda: [str(path) for path in reversed(self.paths())]):
            path = Path(name)
            fault = self._damage(path)
            if fault is None:
                return path
            if self.place.is_main:
                say(f"checkpoint {path} is damaged ({fault}); trying the one before")
        return None

    def _damage(self, path: Path) -> str | None:
        """As `damage`, each rank reading its share: one rank would read a large model for minutes, and the others wait."""
        expected = self._from_main(lambda: _manifest_of(path))
        if expected is None:
            return NO_MANIFEST
        own = list(expected.items())[self.place.rank :: self.place.world_size]
        faults: list[str | None] = [None] * self.place.world_size
        dist.all_gather_object(faults, _first_fault(path, dict(own)))
        return next((fault for fault in faults if fault is not None), None)

    def _from_main(self, ask: Callable[[], Any]) -> Any:
        """What rank 0 answers, on every rank: the others may see an older state of a shared folder."""
        answer = [ask() if self.place.is_main else None]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def load(
        self, path: Path, models: Mapping[str, ForwardModel], say: Callable[[str], None] = log.warning
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Restore `models` in place. Returns (trainer state, this rank's state: None if written on another layout). Rank 0 says
        what the optimisers have as configured and not as it was saved.

        Raises UserError for a format that is not known, and for an optimiser's state that cannot be taken over: of the other
        kind, or misplaced when it was written.
        """
        trainer = json.loads((path / "trainer.json").read_text())
        written = trainer.get("format", 1)
        if written > FORMAT:
            raise UserError(f"checkpoint {path}: found format {written}, expected at most {FORMAT}: a later version wrote it")
        for name, model in models.items():
            if isinstance(model, TrainableModel):
                _refuse_other_optimizer(path, name, model)
            with platform.megatron():
                state = dist_checkpointing.load(_sharded(model, loading=True), str(path / name))
                for i, chunk in enumerate(_bare(model)):
                    chunk.load_state_dict(state[f"model{i}"])
                if isinstance(model, TrainableModel):
                    _restore_first_step(state["optimizer"])
                    if written < 2 and not all_agree(model.agrees_with(state["optimizer"])):
                        raise UserError(_misplaced(path, name))
                    changed = model.load_optimizer(state["optimizer"])
                    if changed and self.place.is_main:
                        say(f"the {name}'s optimiser, by the configuration: {', '.join(changed)}")
        file = path / "ranks" / f"{self.place.rank:05d}.pt"
        # Without "chunks" it was written before this was kept, by a rank that had one.
        same = {"chunks": 1} | trainer["layout"] == layout(self.place, models["policy"]) and file.exists()
        rank_state = torch.load(file, weights_only=True, map_location="cpu") if same else None
        dist.barrier()
        return trainer, rank_state

    def _manifest(self, folder: Path) -> dict[str, list[int]]:
        """Size and CRC-32 of every file, each rank reading its share: a large model would keep one rank busy for minutes."""
        names = self._from_main(lambda: [str(path.relative_to(folder)) for path in _files(folder)])
        own = [folder / name for name in names[self.place.rank :: self.place.world_size]]
        found = {str(p.relative_to(folder)): [p.stat().st_size, _crc(p)] for p in own}
        _sync_to_disk(own)
        everyone: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(everyone, found)
        return {name: entry for part in everyone for name, entry in part.items()}


def layout(place: Place, policy: ForwardModel) -> dict[str, int]:
    """What must agree for a rank's own state to mean the same. `chunks`: with an interleaved pipeline a rank has several."""
    return {
        "world": place.world_size, "tensor": place.tensor_size, "pipeline": place.pipeline_size,
        "chunks": len(policy.chunks), "data": place.data_size,
    }  # fmt: skip


def _shared_out() -> FullyParallelSaveStrategyWrapper:
    """How tensors are saved: the data-parallel replicas, which hold the same ones, each write a part."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy(), group)


def _sharded(model: ForwardModel, loading: bool) -> dict[str, Any]:
    chunks = {f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(_bare(model))}
    if not isinstance(model, TrainableModel):
        return chunks
    # With one chunk the optimiser wants the bare dictionary, with several one a chunk.
    of_optimizer = chunks if len(chunks) > 1 else chunks["model0"]
    return chunks | {"optimizer": model.optimizer.sharded_state_dict(of_optimizer, is_loading=loading, metadata=dict(METADATA))}


def _restore_first_step(optimizer: dict[str, Any]) -> None:
    """Megatron's unsharded optimisers leave Adam's step out of a checkpoint while it is 0 (`if step:`), and then miss it."""
    state = optimizer.get("optimizer", optimizer).get("state", {})
    if isinstance(state, dict) and any("exp_avg" in x for x in state.values() if isinstance(x, dict)):
        state.setdefault("common_step", torch.tensor(0.0))


def _refuse_other_optimizer(path: Path, name: str, model: TrainableModel) -> None:
    """Raises UserError where the checkpoint's optimiser is distributed and `model`'s is not, or the other way round."""
    common = dist_checkpointing.load_common_state_dict(str(path / name))
    written, asked = "param_state_sharding_type" in common["optimizer"], model.optim_config.use_distributed_optimizer
    if written != asked:
        key = f"{'' if name == 'policy' else f'{name}.'}optim.use_distributed_optimizer"
        raise UserError(f"{key}: found {str(asked).lower()}, expected {str(written).lower()} as in checkpoint {path}")


def _misplaced(path: Path, name: str) -> str:
    return (
        f"checkpoint {path}: found the {name}'s optimiser state misplaced, as earlier versions wrote it, expected it in place; "
        "a new run can start from its weights (python -m nemo_amft.convert export, then model.path)"
    )


def _bare(model: ForwardModel) -> list[torch.nn.Module]:
    """The chunks without their DDP wrapper."""
    return [getattr(chunk, "module", chunk) if isinstance(model, TrainableModel) else chunk for chunk in model.chunks]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _sync_to_disk(paths: Sequence[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def damage(path: Path, parts: Sequence[str] | None = None) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if every file is as the manifest says. `parts`: look at
    these folders and files alone."""
    expected = _manifest_of(path)
    if expected is not None and parts is not None:
        expected = {name: entry for name, entry in expected.items() if name.partition("/")[0] in parts}
    return NO_MANIFEST if expected is None else _first_fault(path, expected)


def _manifest_of(path: Path) -> dict[str, list[int]] | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    entries = manifest.values() if isinstance(manifest, dict) else [None]
    sound = all(isinstance(entry, list) and len(entry) == 2 for entry in entries)
    return manifest if sound else None


def _first_fault(path: Path, expected: Mapping[str, Sequence[int]]) -> str | None:
    for name, (size, crc) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, expected {size}"
        if _crc(file) != crc:
            return f"{name} differs from what was written"
    return None


def newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in a run's `folder` whose trainer state is as it was written, and that state; None without one.
    Looks at nothing else of it, so it is for what is to be known before a model is built."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            if damage(path, ["trainer.json"]) is None:
                return path, json.loads((path / "trainer.json").read_text())
    return None


def find(path: str) -> Path:
    """A checkpoint whose policy the user wants: its own folder, or a run's, of which the newest with an intact policy is taken.
    Raises UserError."""
    folder = Path(path)
    candidates = [folder] if (folder / "manifest.json").exists() else sorted((folder / "checkpoints").glob("step_*"))[::-1]
    for candidate in candidates:
        if damage(candidate, ["policy", "ranks", "trainer.json"]) is None:
            return candidate
    raise UserError(f"checkpoint {path}: found no intact checkpoint, expected a run directory or a step_* folder of one")
