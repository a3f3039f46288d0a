"""Five real steps of every method under tensor and under data parallelism; two stages, killed in the middle and continued."""

from __future__ import annotations

import math

import pytest

from nemo_amft.config import command_line
from nemo_amft.config.load import load
from nemo_amft.observe.compare import differences
from nemo_amft.observe.metrics import is_time_key, read_metrics
from tests.parallel import method_steps
from tests.parallel.method_steps import SMALL, StopRequests
from tests.parallel.ranks import run_ranks

NAMES = command_line.choices([command_line.CONF], "method")
MORE = {
    # So small a run would not reach what is the method's own.
    "relift": ("method.buffer_size=2",),
    "uft": ("method.hint_steps=4",),
    "tapo": ("method.instruction='{pattern}'",),
    "ppo": ("critic.warmup_steps=1",),
    "sft_then_rl": ("warmup.select_every=1",),
    "amft_no_warmup": ("warmup.steps=0",),  # the method's own, which SMALL has overridden
}
VARIANTS = {
    "luffy_two_updates": ("method=luffy", "method.rl.updates_per_rollout_batch=2"),
    "hpt_two_updates": ("method=hpt", "method.gate=2", "method.rl.updates_per_rollout_batch=2"),
    "srft_ratio": ("method=srft", "method.own_form=ratio", "method.rl.updates_per_rollout_batch=2"),
}
METAUPDATES = ("controller.meta_every=2", "controller.meta_gradient.val_prompts=2", "controller.meta_gradient.val_samples=2")
LAYOUT = {"tp2": 2, "dp2": 1}


def configuration(layout: str, *choices: str):
    sized = ["trainer.devices=2", f"model.tensor_model_parallel_size={LAYOUT[layout]}"]
    return load(["--config-name", "quickstart", *SMALL, *sized, *choices], check=False)


def configurations(layout: str) -> dict:
    found = {}
    for name in NAMES:
        more = [*MORE.get(name, ()), *(METAUPDATES if name.startswith("amft") else ())]
        found[name] = configuration(layout, f"method={name}", *more)
    return found | {name: configuration(layout, *choices) for name, choices in VARIANTS.items()}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict:
    """By layout and method."""
    return {
        layout: run_ranks(2, method_steps.run_all, configurations(layout), tmp_path_factory.mktemp(layout), timeout=280)[0]
        for layout in LAYOUT
    }


def steps(records: list[dict]) -> list[dict]:
    return [r for r in records if r["phase"] == "train"]


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_five_steps_are_finite_and_the_same_under_both_layouts(records, name):
    tp, dp = (steps(records[layout][name]) for layout in LAYOUT)
    assert [r["step"] for r in tp] == list(range(5))
    for a, b in zip(tp, dp, strict=True):
        # A sample belongs to (seed, step, prompt, sample), so both layouts drew the same tokens; what is left is rounding.
        apart = ("memory/", "tokens_per_second/", "perf/", "padding/", "start_up/")
        names = {n for n in a if not is_time_key(n) and not n.startswith(apart)}
        assert names == {n for n in b if not is_time_key(n) and not n.startswith(apart)}
        assert all(math.isfinite(a[n]) for n in names if isinstance(a[n], float))
        off = {n: (a[n], b[n]) for n in names if isinstance(a[n], float) and abs(a[n] - b[n]) > 1e-4 * max(abs(b[n]), 1e-2)}
        assert not off, f"step {a['step']}: {off}"
        assert a["grad_norm/total"] >= 0.0
        assert a["optimizer/skipped"] == 0


def test_what_is_each_methods_own_has_happened(records):
    def any_of(name: str, metric: str) -> list[float]:
        return [r[metric] for r in steps(records["tp2"][name]) if metric in r]

    solved = any_of("grpo", "reward/mean")
    assert all(0 < x < 1 for x in solved), "nothing to compare within groups"
    assert {"loss/sft", "loss/rl"} <= set(steps(records["tp2"]["chord"])[0])
    assert "loss/rl" not in steps(records["tp2"]["sft"])[0]
    assert "reward/mean" not in steps(records["tp2"]["sft"])[0]
    assert any(any_of("sft_kl", "kl/reference")[1:])
    assert any_of("luffy", "loss/off_policy")
    # What HPT imitates depends on the rollouts, so its entropy is not the policy's.
    assert any_of("hpt", "entropy/sft")
    assert not any_of("hpt", "entropy")
    assert len(any_of("amft", "entropy")) == 5
    assert any(any_of("relift", "method/imitated"))
    assert any(any_of("srft", "seconds/demonstration"))
    assert any(x > 0 for x in any_of("hpt_two_updates", "method/imitated_prompts"))
    assert set(any_of("sasr", "method/imitates")) == {0.0, 1.0}
    assert any(any_of("uft", "method/hinted"))
    assert any_of("uft", "method/hinted")[-1] == 0.0
    assert any(any_of("tapo", "method/guided"))
    assert any_of("ppo", "loss/value")
    assert len(any_of("amft", "meta/g_mu")) == 2
    assert not any_of("amft_no_meta", "meta/g_mu")
    assert not any(any_of("amft_no_entropy", "mu/entropy_term"))
    assert not [r for r in records["tp2"]["amft_no_warmup"] if r["phase"] == "warmup"]
    assert any("validation/accuracy" in r for r in records["tp2"]["sft_then_rl"] if r["phase"] == "warmup")


TWO_STAGES = ("method=sft_then_rl", "warmup.select_every=1", "warmup.steps=6", "checkpoint.every=3", "trainer.max_steps=2")


@pytest.mark.parametrize(
    ("at", "kill"),
    # Boundaries: the start, six steps, three sets of the first evaluation, its end, the first step of the second stage.
    [(9, False), (6, True), (12, True)],
    ids=["stopped_in_the_evaluation", "killed_after_a_better_step_than_the_checkpoints", "killed_in_the_second_stage"],
)
def test_two_stages_continue_in_the_middle_and_hand_over_the_best_step(two_stages, tmp_path, at, kill):
    config, whole = two_stages
    (finished,) = run_ranks(1, method_steps.run_once, config, tmp_path, StopRequests(at, kill))
    assert not finished
    assert run_ranks(1, method_steps.run_once, config, tmp_path, StopRequests()) == [True]
    assert list(differences(whole, read_metrics(tmp_path))) == []


def test_a_stop_in_the_critics_warm_up_is_heard_and_continued_from(tmp_path):
    small = [*SMALL, "trainer.devices=1", "model.tensor_model_parallel_size=1", "trainer.max_steps=1"]
    config = load(["--config-name", "quickstart", *small, "method=ppo", "critic.warmup_steps=4"], check=False)
    for folder, stop in (("whole", StopRequests()), ("broken", StopRequests(config.warmup.steps + 3))):
        (finished,) = run_ranks(1, method_steps.run_once, config, tmp_path / folder, stop)
        assert finished == (folder == "whole")
    made = [record["step"] for record in read_metrics(tmp_path / "broken")]
    assert made == list(range(config.warmup.steps + 2))  # two of the critic's four
    assert run_ranks(1, method_steps.run_once, config, tmp_path / "broken", StopRequests()) == [True]
    assert list(differences(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "broken"))) == []


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """The configuration and the records of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    config = load(
        ["--config-name", "quickstart", *SMALL, "trainer.devices=1", "model.tensor_model_parallel_size=1", *TWO_STAGES],
        check=False,
    )
    assert run_ranks(1, method_steps.run_once, config, folder, StopRequests()) == [True]
    return config, read_metrics(folder)


def test_the_step_that_is_handed_over_is_the_best_of_the_first_stage(two_stages):
    _, records = two_stages
    found = {r["step"] + 1: r["validation/accuracy"] for r in records if r["phase"] == "warmup"}
    assert len(found) == 6
    # Theta_0, evaluated on the same problems with the same seeds, is that step's policy to the last bit.
    (start,) = [r for r in records if r["phase"] == "validation" and r["step"] == 0]
    assert start["validation/accuracy"] == max(found.values())
