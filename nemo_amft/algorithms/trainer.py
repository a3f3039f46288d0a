"""The loop: AMFT's Algorithm 2 (arXiv 2508.06944), with method, controller, task and rollout engine as replaceable parts.

warm-up: W steps of SFT;  H* <- mean token entropy after it
for t = 0 .. T-1:
    demonstrations ~ D_SFT;  rollouts ~ pi_theta_t, graded;  advantages
    g_mu <- -alpha <grad U(theta_t), g_SFT(theta_{t-1}) - g_RL(theta_{t-1})>       every K steps
    mu_{t+1} <- clip(mu_t + eta_mu g_mu + eta_H (H* - H_t))
    step theta on (1 - mu_{t+1}) L_RL + mu_{t+1} L_SFT;  step the critic phi on its own loss
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from nemo_amft.algorithms.controllers.base import Observation
from nemo_amft.algorithms.critic_step import add_gae, update_critic
from nemo_amft.algorithms.evaluation import evaluate
from nemo_amft.algorithms.losses import ValueLoss
from nemo_amft.algorithms.meta_update import MetaUpdate, weight_norm
from nemo_amft.algorithms.methods.base import Demonstration, Group, Term
from nemo_amft.algorithms.parts import Parts, Progression
from nemo_amft.algorithms.sampling import rollout_metrics
from nemo_amft.algorithms.update import UpdateResult, update_policy
from nemo_amft.algorithms.vital_signs import DeadError, check_growth, check_step
from nemo_amft.data.batching import Batch
from nemo_amft.models.trainable import set_schedule
from nemo_amft.observe import start_up
from nemo_amft.observe.side_output import side_output
from nemo_amft.rollout.probe import probe
from nemo_amft.types import Example, MetaGradient, SamplingParams, TokenSequence

MAX_SKIPPED_IN_A_ROW = 10


class Stopped(Exception):
    """Work that was broken off, and is made anew by the run that continues. Its text is the reason."""


class Trainer:
    """Runs Algorithm 2 over its parts. Every rank runs the same code; decisions come from numbers that all ranks share."""

    def __init__(self, parts: Parts):
        self.parts, self.config = parts, parts.config
        self.progress = Progression()
        self._probes_left, self._skipped_in_a_row = 2, 0
        self._stale = True
        """Whether the engine has yet to take over the policy's weights."""
        meta = getattr(parts.controller.config, "meta_gradient", None)
        self.meta = MetaUpdate(parts.policy, meta) if meta is not None else None
        self._clock = time.monotonic()
        c = self.config
        self.schedule = parts.policy.scheduler(
            c.optim.lr, c.optim.min_lr, c.trainer.max_steps, c.optim.lr_warmup_ratio, c.optim.lr_decay_style
        )
        self.critic_schedule = None
        if parts.critic is not None:
            o = c.critic.optim
            self.critic_schedule = parts.critic.scheduler(
                o.lr, o.min_lr, c.trainer.max_steps, o.lr_warmup_ratio, o.lr_decay_style
            )

    # --- the main loop ----------------------------------------------------------------------------------------------------

    def train(self) -> Iterator[int]:
        """The main loop (Algorithm 2, lines 14-35). Yields after each step, for the caller to checkpoint."""
        p, c = self.parts, self.config
        p.progress.start("train", c.trainer.max_steps, self.progress.step)
        while self.progress.step < c.trainer.max_steps:
            t = self.progress.step
            metrics = self.train_step(t)
            self.log("train", t, metrics)
            self.progress.step += 1
            self.validate_if_due()
            yield t

    def train_step(self, t: int) -> dict[str, float]:
        """One pass of Algorithm 2's loop body."""
        p, c = self.parts, self.config
        truncated = p.sampler.chat.num_truncated
        demonstrations = self.demonstrations(p.method.demonstrations_per_step(c.data.demonstrations_per_step))
        prompts = p.method.prompts(t, p.streams["prompts"].take(c.data.prompts_per_step))
        groups, meta_groups = self._rollouts(t, prompts)
        terms = [term.by_source(p.data.demonstration_sources) for term in p.method.compose(t, groups, demonstrations)]
        metrics = rollout_metrics(groups, p.data.prompt_sources) | p.sampler.failures() | p.method.metrics()
        metrics["demonstrations/truncated"] = float(p.sampler.chat.num_truncated - truncated)
        meta = self._meta_gradient(t, meta_groups, metrics)
        learning_rate = set_schedule(self.schedule, t)
        updates = [[self.share(part) for part in parts] for parts in self._split(terms)]
        metrics |= self.prepare(updates)

        def weigh(first: dict[str, float]) -> dict[str, float]:
            seen = Observation(t, metrics | first, self.progress.target_entropy, meta)
            return p.controller.update(seen)

        result, grad_norm = self._update(updates, weigh, keep=self.meta is not None and p.controller.wants_difference(t))
        if result.difference is not None and self.meta is not None and math.isfinite(result.grad_norm):
            metrics |= self.meta.keep(t, learning_rate, result)
        metrics |= result.metrics | p.controller.metrics()
        if self.critic_schedule is not None:
            set_schedule(self.critic_schedule, t)
        metrics |= self.update_critic(updates)
        self.count_skipped(grad_norm, metrics)
        self.sync()
        with side_output("rollouts/"):
            p.rollout_log.write(t, groups)
        metrics |= {"grad_norm/total": grad_norm, "learning_rate": learning_rate}
        if p.controller.entropy_metric in metrics and not (p.controller.first_term == "sft" and p.method.imitates_a_choice):
            metrics["entropy"] = metrics[p.controller.entropy_metric]
        if self.progress.target_entropy is not None:
            metrics["entropy/target"] = self.progress.target_entropy
        return metrics | self.throughput(groups, terms, meta_groups)

    def _rollouts(self, t: int, prompts: list[Example]) -> tuple[list[Group], list[Group]]:
        """Responses to train on, and fresh validation ones of theta_t where the step needs them."""
        meta_due = self.meta is not None and self.meta.kept is not None and self.parts.controller.wants_meta_gradient(t)
        if not prompts and not meta_due:
            return [], []  # the engine sleeps on
        with self.awake():
            groups = self.roll_out(
                "train", t, prompts, self.parts.method.samples_per_prompt(self.config.data.samples_per_prompt)
            )
            return groups, self._meta_rollouts(t) if meta_due else []

    def _split(self, terms: list[Term]) -> list[tuple[Term, ...]]:
        """The terms of each of the step's updates, the one the controller wants to see first in front."""
        first, n = self.parts.controller.first_term, self.parts.method.updates_per_step
        shared = sorted((term for term in terms if not term.own_update), key=lambda term: term.name != first)
        return [*zip(*(term.split(n) for term in shared), strict=True), *((term,) for term in terms if term.own_update)]

    def _update(self, updates: list[list[Term]], weigh: Callable[[dict], dict], keep: bool) -> tuple[UpdateResult, float]:
        """The policy's updates of a step. With several, the controller speaks at the first, and the difference kept is that
        of the last: the update that made theta_{t+1}. Returns the last one's result and the largest gradient norm, or one that
        is not finite."""
        p = self.parts
        weights: list[dict[str, float]] = []

        def weigh_once(metrics: dict[str, float]) -> dict[str, float]:
            if not weights:
                weights.append(weigh(metrics))
            return weights[0]

        results = [
            update_policy(
                p.policy,
                terms,
                weigh_once,
                p.timers,
                temperature=self.config.rollout.temperature,
                apart=self.meta.product if self.meta is not None and keep and terms is updates[-1] else None,
            )
            for terms in updates
        ]
        results[-1].metrics = mean_of([result.metrics for result in results])
        norms = [result.grad_norm for result in results]
        return results[-1], next((norm for norm in norms if not math.isfinite(norm)), max(norms))

    def prepare(self, updates: list[list[Term]]) -> dict[str, float]:
        """Add to this rank's shares what their terms need from critic, old policy and reference. Returns metrics of it."""
        return mean_of([self._prepare(share) for terms in updates for share in terms])

    def _prepare(self, share: Term) -> dict[str, float]:
        p, metrics = self.parts, dict[str, float]()
        temperature = self.config.rollout.temperature if share.on_policy else 1.0
        if "value" in share.needs:
            assert p.critic is not None
            with p.timers("value"):
                metrics = add_gae(share.batch, p.critic, share)
        if "old_log_prob" in share.needs:
            with p.timers("logprob"):
                share.batch.per_token["old_log_prob"] = p.policy.log_probs(share.batch, temperature=temperature)
        if "reference_log_prob" in share.needs:
            assert p.reference is not None
            with p.timers("logprob"):
                share.batch.per_token["reference_log_prob"] = p.reference.log_probs(share.batch, temperature=temperature)
        return metrics

    def update_critic(self, updates: list[list[Term]]) -> dict[str, float]:
        """phi's own step (Algorithm 2, line 34), one for each of the policy's updates."""
        p = self.parts
        if p.critic is None:
            return {}
        loss = ValueLoss(self.config.critic.value_clip)
        with p.timers("critic"):
            terms = [term for terms in updates for term in terms if "value" in term.needs]
            return mean_of([update_critic(term.batch, p.critic, loss) for term in terms])

    def count_skipped(self, grad_norm: float, metrics: dict[str, float]) -> None:
        """Count a step one of whose updates had a gradient that is not finite, and so changed nothing; give up after several in
        a row, and at once where the policy itself is lost (DeadError)."""
        check_step(metrics, self.parts.vocabulary)
        finite = all(math.isfinite(x) for x in (grad_norm, metrics.get("grad_norm/value", 0.0)))
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        self.progress.skipped_updates += not finite
        metrics["optimizer/skipped"] = float(self.progress.skipped_updates)
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DeadError(f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a gradient that is not finite")

    def weigh_models(self) -> None:
        """Before a checkpoint: raises DeadError where the weights say that it must not be written, and remembers their size."""
        models = {"policy": self.parts.policy, "critic": self.parts.critic}
        norms = {name: weight_norm(model) for name, model in models.items() if model is not None}
        check_growth(norms, self.progress.weight_norms)
        self.progress.weight_norms = norms

    # --- meta-gradient ----------------------------------------------------------------------------------------------------

    def _meta_rollouts(self, t: int) -> list[Group]:
        p = self.parts
        assert self.meta is not None
        config = self.meta.config
        with p.timers("meta"):
            return self.roll_out("meta", t, p.streams["meta"].take(config.val_prompts), config.val_samples)

    def _meta_gradient(self, t: int, groups: list[Group], metrics: dict[str, float]) -> MetaGradient | None:
        """g_mu of Eq. 25, logged with its parts."""
        if not groups or self.meta is None:
            return None
        with self.parts.timers("meta"):
            meta = self.meta.estimate(groups, self.config.rollout.temperature)
        rewards = [s.verdict.reward for g in groups for s in g.samples]
        metrics |= {
            "meta/g_mu": meta.value,
            "meta/dot": meta.dot,
            "meta/grad_u_norm": meta.grad_u_norm,
            "meta/direction_norm": meta.direction_norm,
            "meta/reward": sum(rewards) / len(rewards),
        }
        return meta

    def stop_if_asked(self) -> None:
        """Raises Stopped where a signal or the clock asks any rank to stop, in what is longer than a step. Collective."""
        if (reason := self.parts.stop()) is not None:
            raise Stopped(reason)

    # --- shared -----------------------------------------------------------------------------------------------------------

    def demonstrations(self, n: int) -> list[Demonstration]:
        if n == 0:
            return []  # of methods that use none, whose data may have none
        found = map(self.parts.sampler.demonstration, self.parts.streams["demonstrations"].take(n))
        return [demonstration for demonstration in found if demonstration is not None]

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """The engine is awake inside, and has the policy's weights (on a GPU waking brings them)."""
        p = self.parts
        with p.timers("sync"):
            if self._stale:
                p.policy.gather_parameters()
                p.engine.update_weights()
                self._stale = False
            p.engine.wake()
        yield
        p.engine.sleep()

    def roll_out(self, stream: str, step: int, examples: list[Example], samples: int) -> list[Group]:
        r = self.config.rollout
        return self.parts.sampler.roll_out(
            stream, step, examples, samples, r.max_new_tokens, r.temperature, top_p=r.top_p, top_k=r.top_k
        )

    def share(self, term: Term) -> Term:
        return replace(term, batch=term.batch.share(self.parts.place))

    def sync(self) -> None:
        """The policy is theta_t now: the engine is to have it when it wakes next. The first two times, check at once that it
        does: an engine that keeps old weights, or reads another model than the trainer, would ruin the run in silence. The
        second check sees a change of weights."""
        p = self.parts
        self._stale = True
        if self._probes_left:
            self._probes_left -= 1
            with self.awake(), p.timers("probe"):
                found = probe(p.engine, self._probe_log_probs, *self._probe_requests(), self.config.rollout.probe_tolerance)
            p.progress.message(
                f"probe of the weight sync: rollout engine and policy differ by {found['mean_abs_diff']:.1e} nats a token on "
                f"average, {found['max_abs_diff']:.1e} at most"
            )

    def _probe_requests(self) -> tuple[list[tuple[int, ...]], SamplingParams]:
        p, r = self.parts, self.config.rollout
        prompts = [p.sampler.chat.prompt_ids(example.messages) for example in p.data.validation[:4]]
        # Temperature 1 and no truncation: the one distribution whose log-probs every engine gives.
        return prompts, SamplingParams(min(16, r.max_new_tokens), 1.0, stop_token_ids=p.sampler.stop_token_ids)

    def _probe_log_probs(self, sequences: list[TokenSequence]) -> list[list[float]]:
        found = self.parts.policy.log_probs(Batch.whole(sequences))
        return [values.tolist() for values in found]

    def validate_if_due(self) -> None:
        """The evaluation of the present policy, where one is due that has not been made. Raises Stopped."""
        step, every = self.progress.step, self.config.validation.every
        first, last = step == 0, step == self.config.trainer.max_steps
        if step > self.progress.validated and (first or last or (every and step % every == 0)):
            self.validate(step, final=first or last)
            self.progress.validated = step

    def validate(self, step: int, final: bool) -> None:
        """Accuracy of theta_step on D_val; at the start and the end also on the test problems, which nothing else sees (a task
        without any has D_val's again), and on the task's problems out of distribution. Benchmarks come at the start and the end
        too, or more often."""
        p, v = self.parts, self.config.validation
        sets = {"validation": p.data.validation[: v.prompts]}
        if final or (v.benchmarks_every and step % v.benchmarks_every == 0):
            sets |= p.data.benchmarks
        if final:
            others = {"test": p.data.test} | p.data.evaluation_sets
            sets |= {name: examples[: v.final_prompts] for name, examples in others.items()}
        metrics: dict[str, float] = {}
        with self.awake(), p.timers("validation"):
            for name, examples in sets.items():
                self.stop_if_asked()
                length, sources = self.config.rollout.max_new_tokens, p.data.prompt_sources if name == "validation" else ()
                found, groups = evaluate(p.sampler, name, examples, v.samples, length, v.temperature, sources)
                metrics |= found
                with side_output("rollouts/"):
                    p.rollout_log.write(step, groups, name)
        self._remember(step, metrics)
        p.writer.write("validation", step, metrics | p.timers.collect())
        p.progress.message(f"step {step}: " + ", ".join(f"{n} accuracy {metrics[f'{n}/accuracy']:.3f}" for n in sets))

    def _remember(self, step: int, metrics: dict[str, float]) -> None:
        accuracy = self.progress.accuracy
        if "test/accuracy" in metrics:
            found = {name.removesuffix("/accuracy"): value for name, value in metrics.items() if name.endswith("/accuracy")}
            accuracy |= {f"{'final' if step else 'warmup'}/{name}": value for name, value in found.items()}
        if metrics["validation/accuracy"] >= accuracy.get("best/validation", 0.0):
            accuracy |= {"best/validation": metrics["validation/accuracy"], "best/step": float(step)}

    def throughput(self, groups: list[Group], terms: list[Term], meta_groups: list[Group]) -> dict[str, float]:
        """Count the work of a step; `terms` are whole ones. Returns its rates."""
        self.count_tokens([*groups, *meta_groups], terms)
        return self.parts.throughput.step(groups, terms, meta_groups)

    def count_tokens(self, groups: list[Group], terms: list[Term]) -> None:
        """Add to the run's totals."""
        self.progress.generated_tokens += sum(s.num_tokens for g in groups for s in g.samples)
        self.progress.trained_tokens += sum(len(s.tokens) for term in terms for s in term.batch.sequences)

    def log(self, phase: str, step: int, metrics: dict[str, float], shown: int | None = None) -> None:
        """One record, and the progress line (`shown`: the step within its phase, where it counts otherwise)."""
        if started := start_up.finish("first step"):
            metrics = metrics | {f"start_up/{part}": seconds for part, seconds in started.items()}
            self.parts.progress.message(start_up.described(started))
        self.parts.method.observe(phase, step, metrics)
        self.parts.writer.write(phase, step, metrics | self.parts.timers.collect())
        self.parts.progress.update(step if shown is None else shown, metrics)

    def _tick(self) -> float:
        """Wall time of the run, over all its processes."""
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now
        return self.progress.seconds

    # --- state ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; the same on every rank."""
        p = self.parts
        self._tick()
        return {
            "progress": vars(self.progress) | {"accuracy": dict(self.progress.accuracy)},
            "controller": p.controller.state_dict(),
            "method": p.method.state_dict(),
            "streams": {name: stream.state_dict() for name, stream in p.streams.items()},
            "saved_at": time.time(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        p, progress = self.parts, state["progress"]
        if progress["target_entropy"] is not None:  # of a run that did not count these yet, and saved when they were done
            progress = {"critic_step": self.config.critic.warmup_steps, "validated": progress["step"]} | progress
        self.progress = Progression(**progress)
        p.controller.load_state_dict(state["controller"])
        p.method.load_state_dict(state["method"])
        for name, stream in p.streams.items():
            if name in state["streams"]:  # one that the run had no use for so far begins
                stream.load_state_dict(state["streams"][name])


def mean_of(parts: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of several updates of a step, each the mean over the updates that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
