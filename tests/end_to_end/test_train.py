"""The program as users start it: two ranks, real Megatron, real vLLM; killed, resumed, exported, evaluated."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_amft.convert import export_checkpoint
from nemo_amft.observe.compare import differences
from nemo_amft.observe.metrics import read_metrics
from tests import failing_method
from tests.end_to_end import launch
from tests.parallel.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("finished")
    log = run_dir.with_suffix(".log")
    assert launch.finish(launch.command(run_dir), log) == 0, log.read_text()
    return run_dir


def test_every_step_is_logged_with_the_numbers_the_controller_lives_on(finished):
    records = read_metrics(finished)
    train = [r for r in records if r["phase"] == "train"]
    assert [r["step"] for r in train] == list(range(6))
    always = {
        "mu", "mu/meta_term", "mu/entropy_term", "grad_norm/total", "entropy", "entropy/target", "reward/mean",
        "reward/timeout", "reward/error", "loss/sft", "loss/rl", "loss/value", "kl/rollout_vs_policy", "clip_fraction",
        "token_mult_prob_error", "advantage/std", "advantage/whitened", "loss/clamped_tokens",
        "response_length/mean", "response_length/max", "truncated_fraction", "tokens_per_second/generation",
        "tokens_per_second/training", "memory/peak", "seconds/rollout", "seconds/sft", "seconds/rl", "seconds/sync",
    }  # fmt: skip
    assert all(always <= set(r) for r in train), [always - set(r) for r in train]
    # K = 2: the differences of steps 1 and 3 are kept, and used by steps 2 and 4; at t = 0 there is none.
    assert [r["step"] for r in train if "meta/g_mu" in r] == [2, 4]
    assert [r["step"] for r in train if "meta/cosine" in r] == [1, 3, 5]
    assert any(0 < r["reward/mean"] < 1 for r in train), "the RL term had nothing to learn from"
    assert all(r["mu/missed"] == 0 and r["mu/skipped"] == 0 for r in train)
    assert all(r["kl/rollout_vs_policy"] < 1e-6 for r in train), "vLLM and Megatron disagree"


def test_a_run_directory_holds_what_the_readme_says(finished):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "figures/dynamics.png",
        "hf/config.json",
        "checkpoints",
        "rollouts",
    ):
        assert (finished / name).exists(), name
    assert len(list((finished / "checkpoints").glob("step_*"))) == 2
    first = json.loads((finished / "rollouts" / "train_000000.jsonl").read_text().splitlines()[0])
    assert {"prompt", "response", "answer", "reward"} <= set(first)


@pytest.mark.parametrize("kill_at", [("warmup", 20), ("train", 3)], ids=["in_warm_up", "in_training"])
def test_killed_and_resumed_equals_uninterrupted_to_the_last_bit(finished, tmp_path, kill_at):
    run_dir, log = tmp_path / "run", tmp_path / "log"

    def reached() -> bool:
        if not (run_dir / "metrics.jsonl").exists():
            return False
        return any((r["phase"], r["step"]) == kill_at for r in read_metrics(run_dir))

    launch.kill_when(launch.start(launch.command(run_dir), log), reached)
    assert not (run_dir / "summary.json").exists()
    assert launch.finish(launch.command(run_dir), log) == 0, log.read_text()
    assert list(differences(read_metrics(finished), read_metrics(run_dir))) == []


def test_a_finished_run_started_again_says_so_and_does_nothing(finished, tmp_path):
    before = (finished / "metrics.jsonl").read_bytes()
    log = tmp_path / "log"
    assert launch.finish(launch.command(finished), log) == 0
    assert log.read_text().count("the run is finished (6 steps)") == 1
    assert (finished / "metrics.jsonl").read_bytes() == before


def export_from_a_shell_of_an_allocation(run_dir: Path, out: Path) -> float:
    """`export_checkpoint` where Slurm's variables speak of eight tasks, of which this process is none."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    slurm = {"PROCID": "0", "NTASKS": "8", "LOCALID": "0", "JOB_NODELIST": "nowhere[1-2]", "JOB_ID": "1"}
    os.environ |= {f"SLURM_{name}": value for name, value in slurm.items()}
    return export_checkpoint(run_dir, out)


def test_exported_policy_is_the_last_checkpoint_and_loads_in_transformers(finished, tmp_path):
    (difference,) = run_ranks(1, export_from_a_shell_of_an_allocation, finished, tmp_path / "hub", process_group=False)
    assert difference < 1e-4
    exported, written = (load_file(next(folder.glob("*.safetensors"))) for folder in (tmp_path / "hub", finished / "hf"))
    assert exported.keys() == written.keys()
    assert all(torch.equal(exported[name], written[name]) for name in written)
    model, tokenizer = (kind.from_pretrained(finished / "hf") for kind in (AutoModelForCausalLM, AutoTokenizer))
    row = json.loads((finished / "rollouts" / "train_000005.jsonl").read_text().splitlines()[0])
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.isfinite(model(**ids).logits).all()


def test_evaluate_grades_an_exported_policy(finished, tmp_path):
    log, out = tmp_path / "log", tmp_path / "evaluation"
    arguments = launch.command(out, f"checkpoint={finished}", module="evaluate", ranks=1)
    assert launch.finish(arguments, log) == 0, log.read_text()
    result = json.loads((out / "evaluation.json").read_text())
    assert result["test/problems"] == 16
    # the same seeds, weights and problems as the run's own final evaluation, on another layout
    assert result["test/accuracy"] == json.loads((finished / "summary.json").read_text())["accuracy"]["final/test"]


def test_an_error_of_one_rank_ends_the_job_and_is_shown_once(tmp_path):
    log = tmp_path / "log"
    arguments = launch.command(tmp_path / "run", failing_method.TARGET)
    assert launch.finish(arguments, log) == 1
    text = log.read_text()
    assert text.count(failing_method.WORDS) == 1, text
    assert text.count("nemo_amft: rank 1 failed") == 1, text


def test_every_option_at_once_under_data_parallelism(tmp_path):
    """Reference KL, two updates a batch, importance weights, rollout entropy, Adam preconditioner, trace, critic warm-up."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    options = (
        "model.tensor_model_parallel_size=1", "rollout=megatron", "method.rl.kl_coef=0.01", "method.rl.entropy_coef=0.001",
        "method.rl.updates_per_rollout_batch=2", "method.rl.importance_cap=2.0", "controller.entropy_source=rollouts",
        "controller.meta_gradient.preconditioner=adam", "controller.meta_gradient.trace_decay=0.5", "critic.warmup_steps=2",
        "optim.overlap_grad_reduce=true", "optim.overlap_param_gather=true", "trainer.max_steps=3",
    )  # fmt: skip
    assert launch.finish(launch.command(run_dir, *options), log) == 0, log.read_text()
    train = [r for r in read_metrics(run_dir) if r["phase"] == "train"]
    assert len(train) == 3
    assert all(r["kl/reference"] >= 0 for r in train)
    assert train[-1]["kl/reference"] > 0  # the policy has left the reference behind
    assert "meta/g_mu" in train[2]
    assert all(r["entropy"] == r["entropy/rl"] for r in train)


def test_pipeline_parallel_training_feeds_vllm(tmp_path):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    layout = ("model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=2", "trainer.max_steps=3")
    assert launch.finish(launch.command(run_dir, *layout), log) == 0, log.read_text()
    train = [r for r in read_metrics(run_dir) if r["phase"] == "train"]
    assert all(r["kl/rollout_vs_policy"] < 1e-6 for r in train)
