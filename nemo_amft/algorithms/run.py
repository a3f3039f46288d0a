"""One run from its config to its summary: set up, resume, warm up, train, export; or to where it was asked to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_amft.algorithms.build import build_parts, load_chat, load_model, on_main_first, reward_pool
from nemo_amft.algorithms.inputs import Fingerprints, fingerprints, refuse_other_beginning
from nemo_amft.algorithms.meta_gradient import KeptDifference
from nemo_amft.algorithms.parts import Parts
from nemo_amft.algorithms.round_trip import check_round_trip
from nemo_amft.algorithms.run_data import RunData, load_data
from nemo_amft.algorithms.trainer import Stopped, Trainer
from nemo_amft.algorithms.vital_signs import DeadError
from nemo_amft.algorithms.warmup import after_warm_up, warm_up, warm_up_critic
from nemo_amft.config import launcher
from nemo_amft.config.continuation import Change, changes, refuse_fewer_steps
from nemo_amft.config.hub_json import read_object
from nemo_amft.config.rules import lookup
from nemo_amft.config.run_dir import check_folder, prepare, refuse_foreign_files
from nemo_amft.config.run_dir import run_dir as run_directory
from nemo_amft.config.schema import Config
from nemo_amft.config.validate import resolved
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.models.checkpoints import Checkpoints, layout
from nemo_amft.models.hub_model import HubModel
from nemo_amft.models.hub_weights import save_hub_model
from nemo_amft.models.trainable import ForwardModel, TrainableModel
from nemo_amft.observe import start_up
from nemo_amft.observe.files import UnwrittenError, write_atomically, writing
from nemo_amft.observe.metrics import read_metrics
from nemo_amft.observe.progress import final_table
from nemo_amft.observe.side_output import failures as side_output_failures
from nemo_amft.observe.side_output import side_output
from nemo_amft.observe.summary import write_summary
from nemo_amft.parallel import failures, groups, platform, random_state, run_lock, shared_memory, signals
from nemo_amft.parallel.reductions import all_agree
from nemo_amft.planning import batch_table
from nemo_amft.tasks.base import Task
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import RunError, UserError


def run(config: Config) -> int:
    """Train as `config` says. Returns the exit status: 0 when the run is finished, also when it was finished before.
    Where it was asked to stop, the process ends with signals.STATUS, and the same command continues."""
    started = time.monotonic()
    stop = signals.StopRequests(config.exp_manager.max_time_per_run)
    platform.install()
    run_dir = run_directory(config.exp_manager)
    changed = changes(run_dir, config)
    finished = finished_run(run_dir, config)
    if finished is not None:
        if launcher.rank() == 0:
            print(f"{run_dir}: the run is finished ({finished['steps']} steps); see {run_dir}/summary.json")
        return 0
    refuse_foreign_files(run_dir)
    run_lock.hold(run_dir)
    if launcher.rank() == 0:
        failures.forget(run_dir)
        show_changes(run_dir, changed)
    t = config.trainer
    place = groups.initialize(config.model, t.seed, t.phase_timeout_s, t.meeting_timeout_s)
    start_up.mark("process groups")
    with failures.shown_once(run_dir, place.rank):
        check_folder(run_dir)
        shared_memory.check(config, platform.is_gpu())
        with writing(run_dir):
            hub = load_model(config, run_dir, place)
        chat = load_chat(config, run_dir, place, hub, config.data.max_demonstration_tokens)
        task = config.task.build(config.data, config.trainer.seed)
        rewards = reward_pool(config, task, place)  # starts while the data is read
        data = on_main_first(place, lambda: load_data(config, task, chat))
        inputs = on_main_first(place, lambda: examined(config, run_dir, task, chat, data, hub, changed, rewards))
        start_up.mark("data")
        # Before anything of the run's own is written: what it leaves says that the folder is a run's (refuse_foreign_files).
        with writing(run_dir):
            loggers = prepare(config)
        start_up.mark("loggers")
        if place.is_main:
            write_atomically(run_dir / "config.yaml", yaml.safe_dump(resolved(config), sort_keys=False))
            show_setup(config, run_dir, data, chat)
        parts = build_parts(config, run_dir, place, loggers, hub, task, chat, data, stop.agreed, rewards)
        finished_now = Run(Trainer(parts), hub, inputs, started).complete()
        close(parts)
        if not finished_now:
            signals.leave()
        groups.shutdown()
    run_lock.release()
    return 0


def examined(
    config: Config,
    run_dir: Path,
    task: Task,
    chat: ChatTemplate,
    data: RunData,
    hub: HubModel,
    changed: Sequence[Change],
    rewards: RewardPool | None,
) -> Fingerprints:
    """What the run reads, once it is what the run's checkpoint has learned from, and survives the tokenizer. All of that is
    rank 0's, which writes a checkpoint's trainer state; nothing on the others. Raises UserError."""
    if launcher.rank() != 0:
        return {}
    assert rewards is not None
    inputs = fingerprints(data, hub)
    refuse_other_beginning(config, run_dir / "checkpoints", inputs, changed, print)
    check_round_trip(data, chat, rewards, hasattr(task, "environment"), lookup(config, "task.thinking"))
    return inputs


def show_changes(run_dir: Path, changed: Sequence[Change]) -> None:
    """What is different from when the run was last started, while config.yaml still has that."""
    if changed:
        print("\n  ".join([f"{run_dir}: continued with another configuration:", *map(str, changed)]), flush=True)


def show_setup(config: Config, run_dir: Path, data: RunData, chat: ChatTemplate) -> None:
    """The batch table, and two decoded examples of each stream: what goes in should be seen before it is computed on."""
    print(f"configuration, resolved: {run_dir / 'config.yaml'}")
    print("\n".join(f"  {name:<36}{value}" for name, value in batch_table(config)))
    for name, weights, examples in (
        ("prompts", data.prompt_weights, data.prompts),
        ("demonstrations", data.demonstration_weights, data.demonstrations),
    ):
        for source, weight in weights.items():
            size = sum(example.source == source for example in examples)
            print(f"  {name} of {source:<24}{weight / sum(weights.values()):.1%} of those drawn, from {size:,}")
    shown = (("demonstration", data.some_demonstrations(2)), ("prompt", data.some_prompts(2)))
    for name, examples in shown:
        for example in examples:
            ids = chat.demonstration(example).tokens if name == "demonstration" else chat.prompt_ids(example.messages)
            text = chat.decode(ids)
            print(f"  {name} {example.id}: {text if len(text) <= 600 else text[:300] + ' ... ' + text[-300:]!r}", flush=True)


def finished_run(run_dir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a run that has made all its steps, or None. Raises UserError for one that has made more."""
    path = run_dir / "summary.json"
    if not path.exists() or not config.exp_manager.resume_if_exists:
        return None
    summary = read_object(path)
    steps = summary.get("steps")
    if type(steps) is not int:
        raise UserError(f"{path}: steps: found {steps!r}, expected how many steps the finished run has made")
    refuse_fewer_steps(config, {"step": steps}, run_dir)
    return summary if steps == config.trainer.max_steps else None


class Run:
    """A trainer with its checkpoints: continues where the run directory left off."""

    def __init__(self, trainer: Trainer, hub: Any, inputs: Fingerprints, started: float):
        """`inputs`: what this run reads, on rank 0. `started`: when its process did."""
        self.trainer, self.parts, self.hub, self.inputs, self.started = trainer, trainer.parts, hub, inputs, started
        p = self.parts
        self.checkpoints = Checkpoints(p.run_dir / "checkpoints", p.config.checkpoint.keep, p.place)
        named = {"policy": p.policy, "critic": p.critic, "reference": p.reference}
        self.models: Mapping[str, ForwardModel] = {name: model for name, model in named.items() if model is not None}

    def complete(self) -> bool:
        """All steps that are left, then export and summary. False where it was asked to stop on the way, and has saved. Raises
        RunError for a policy that is lost, which is neither saved nor exported, and for a disk that takes no more."""
        try:
            return self._complete()
        except DeadError as error:
            way_on = "a lower optim.lr, warmup.lr or critic.optim.lr continues from there"
            raise RunError(
                f"{error}: the run has diverged, and nothing of that is saved; {self._what_is_left('last good', way_on)}"
            ) from error
        except UnwrittenError as error:
            way_on = "from which the same command continues once there is room"
            raise RunError(f"{error}; {self._what_is_left('newest', way_on)}") from error

    def _what_is_left(self, which: str, way_on: str) -> str:
        good = self.checkpoints.paths()[-1:]
        return f"the {which} checkpoint is {good[0]} ({way_on})" if good else "there is no checkpoint yet"

    def _complete(self) -> bool:
        resumed = self.resume()
        if self.must_stop():
            return False  # nothing new to save
        if not self.trainer.progress.weight_norms:
            self.trainer.weigh_models()
        try:
            if not self._all_steps(resumed):
                return False
        except Stopped as stopped:  # in an evaluation, which the run that continues makes
            self._say_stopping(str(stopped))
            self.save()
            return False
        self.finish()
        return True

    def _all_steps(self, resumed: bool) -> bool:
        """Warm-up, the critic's, the first evaluation, training. False where it was asked to stop, and has saved."""
        trainer, c = self.trainer, self.parts.config
        progress = trainer.progress
        # A resumed run that is past warm-up stays past it, also where warmup.steps was raised meanwhile.
        for w in warm_up(trainer) if progress.target_entropy is None else ():
            # Also after the last: the critic's warm-up and the first evaluation are to come, and take long.
            if self.stops_after(w + 1, save=c.checkpoint.every > 0 and w + 1 == c.warmup.steps):
                return False
        if progress.target_entropy is None:
            after_warm_up(trainer)
        elif resumed:
            trainer.sync()
        for i in warm_up_critic(trainer):
            if self.stops_after(i + 1):
                return False
        before = progress.validated
        trainer.validate_if_due()
        if progress.validated != before and self.stops_after(0, save=True):
            return False
        for t in trainer.train():
            if t + 1 == c.trainer.max_steps:
                self.save()
            elif self.stops_after(t + 1):
                return False
        return True

    def stops_after(self, steps: int, save: bool = False) -> bool:
        """At a boundary, after so many steps of a phase: save where a checkpoint is due, or `save` says so. Returns whether the
        run is to stop, and then has saved in any case."""
        stop, every = self.must_stop(), self.parts.config.checkpoint.every
        if stop or save or (every > 0 and steps > 0 and steps % every == 0):
            self.save()
        return stop

    def must_stop(self) -> bool:
        """Whether a signal or the clock asks any rank to stop. At a step boundary, on every rank."""
        reason = self.parts.stop()
        if reason is not None:
            self._say_stopping(reason)
        return reason is not None

    def _say_stopping(self, reason: str) -> None:
        self.parts.progress.message(f"stopping, {reason}: the same command continues (exit status {signals.STATUS})")

    # --- checkpoints ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        p, meta = self.parts, self.trainer.meta
        kept = meta.kept if meta is not None else None
        self.trainer.weigh_models()
        for model in self.models.values():
            if isinstance(model, TrainableModel):
                model.gather_parameters()
        rank_state = {
            "random": random_state.get_state(),
            "kept": None
            if kept is None
            else {"direction": kept.direction, "learning_rate": kept.learning_rate, "step": kept.step},
        }
        with p.timers("checkpoint"):
            state = self.trainer.state_dict() | {"layout": layout(p.place, p.policy), "inputs": self.inputs}
            progress = self.trainer.progress
            ticks = progress.warmup_step + progress.critic_step + progress.step
            self.checkpoints.save(ticks, self.models, state, rank_state)

    def resume(self) -> bool:
        """Load the newest intact checkpoint, if the run has one and may. Returns whether it did."""
        p = self.parts
        path = self.checkpoints.newest_intact(p.progress.message)
        if path is None:
            p.writer.rewind("warmup", 0)
            return False
        state, rank_state = self.checkpoints.load(path, self.models, p.progress.message)
        self.trainer.load_state_dict(state)
        # The ranks must go the same way: a meta-update is collective.
        if all_agree(rank_state is not None) and rank_state is not None:
            random_state.set_state(rank_state["random"])
            self._restore_kept(rank_state["kept"])
        elif p.place.is_main:
            p.progress.message(
                f"{path} was written on another layout: random generators start anew, the kept difference is lost"
            )
        progress = self.trainer.progress
        if progress.target_entropy is None:
            p.writer.rewind("warmup", progress.warmup_step)
        elif progress.validated < 0:
            p.writer.rewind("warmup", p.config.warmup.steps + progress.critic_step)
        else:
            p.writer.rewind("train", progress.step, progress.validated)
        p.progress.message(f"resumed from {path}")
        return True

    def _restore_kept(self, kept: dict[str, Any] | None) -> None:
        """Take up the kept difference, if it fits this rank's shards: overlap_grad_reduce, for one, cuts them differently."""
        shapes = [parameter.shape for parameter in self.parts.policy.main_parameters()]
        if kept is None or self.trainer.meta is None:
            return
        if not all_agree([d.shape for d in kept["direction"]] == shapes):
            self.parts.progress.message("the optimiser's shards differ from the checkpoint's: the kept difference is lost")
            return
        direction = [d.to(platform.device()) for d in kept["direction"]]
        self.trainer.meta.kept = KeptDifference(**{**kept, "direction": direction})

    # --- the end ----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Export, figure, summary and table."""
        p, progress = self.parts, self.trainer.progress
        if p.config.checkpoint.export_hf:
            with p.timers("checkpoint"), writing(p.run_dir / "hf"):
                save_hub_model(p.policy.chunks, self.hub, p.run_dir / "hf")
        if not p.place.is_main:
            return
        from nemo_amft.observe import figures  # slow to import, for one rank at the end

        figure = p.run_dir / "figures" / "dynamics.png"
        controller = p.controller.config
        bounds = (controller.mu_min, controller.mu_max) if hasattr(controller, "mu_min") else None
        title = f"{p.config.exp_manager.name}, seed {p.config.trainer.seed}"
        with side_output("figures/"):
            figures.dynamics(read_metrics(p.run_dir), figure, title, bounds)
        summary = {
            "steps": progress.step,
            "accuracy": progress.accuracy,
            "wall_seconds": round(progress.seconds, 1),
            "this_process_seconds": round(time.monotonic() - self.started, 1),
            "generated_tokens": progress.generated_tokens,
            "trained_tokens": progress.trained_tokens,
            "tokens_per_second": round((progress.generated_tokens + progress.trained_tokens) / max(progress.seconds, 1e-9), 1),
            "controller": p.controller.metrics(),
            "seed": p.config.trainer.seed,
            "name": p.config.exp_manager.name,
            "world_size": p.place.world_size,
            "skipped_updates": progress.skipped_updates,
            "side_output_failures": dict(side_output_failures),
        }
        write_summary(p.run_dir, summary)
        final_table(list(_rows(summary, figure)))


def close(parts: Parts) -> None:
    """End the children and release the files of a run that is finished or stops."""
    parts.engine.close()
    if parts.sampler.rewards is not None:
        parts.sampler.rewards.close()
    parts.writer.close()


def _rows(summary: dict[str, Any], figure: Path) -> Iterator[tuple[str, str]]:
    accuracy = summary["accuracy"]
    for when in ("warmup", "final"):
        if f"{when}/test" in accuracy:
            label = "after warm-up" if when == "warmup" else "final"
            yield f"test accuracy, {label}", f"{100 * accuracy[f'{when}/test']:.1f}%"
    if "best/validation" in accuracy:
        yield "best validation accuracy", f"{100 * accuracy['best/validation']:.1f}% (step {accuracy['best/step']:.0f})"
    if "mu" in summary["controller"]:
        yield "mu", f"{summary['controller']['mu']:.3f}"
    yield "steps", str(summary["steps"])
    yield "wall time", f"{summary['this_process_seconds']:.0f} s"
    yield "tokens/s", f"{summary['tokens_per_second']:.0f}"
    if summary["skipped_updates"]:
        yield "steps skipped", f"{summary['skipped_updates']} of {summary['steps']}: their gradients were not finite"
    for kind, times in summary["side_output_failures"].items():
        yield f"{kind} failed", f"{times} times; the first is in the log"
    if figure.exists():
        yield "picture", str(figure)
