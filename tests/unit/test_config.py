"""Configuration: what is refused, with which words; what is accepted; what the run directory holds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from nemo_amft.config import command_line, rules
from nemo_amft.config.load import load
from nemo_amft.config.run_dir import run_dir
from nemo_amft.config.schema import CriticConfig, ExpManagerConfig
from nemo_amft.config.validate import MASK, mask_argument, resolved, validate
from nemo_amft.types import UserError


@dataclass(frozen=True)
class Inner:
    trace_decay: float = 0.0
    val_samples: int = 4


@dataclass(frozen=True)
class FakeConfig:
    mu_min: float = 0.05
    mu_init: float = 0.5
    mu_max: float = 0.95
    meta_every: int = 20
    entropy_sign: Literal[1, -1] = 1
    meta_gradient: Inner = field(default_factory=Inner)


class Fake:
    Config = FakeConfig

    def __init__(self, config, *args):
        self.config, self.args = config, args


@dataclass(frozen=True)
class RL:
    advantage: str = "grpo"
    updates_per_rollout_batch: int = 1
    importance_cap: float | None = None


@dataclass(frozen=True)
class FakeMethodConfig:
    rl: RL = field(default_factory=RL)


class FakeMethod:
    Config = FakeMethodConfig


class Picky:
    """A plug-in with a rule of its own."""

    Config = FakeConfig

    @staticmethod
    def validate(config, plugin_config):
        if config.trainer.max_steps < plugin_config.meta_every:
            raise UserError("task.meta_every: too rare for this run")


def raw(**sections):
    """A valid composed configuration, changed by dotted keys written with __."""
    values = {
        "method": {"_target_": f"{__name__}.FakeMethod"},
        "controller": {"_target_": f"{__name__}.Fake"},
        "task": {"_target_": f"{__name__}.Fake"},
        "data": {"max_prompt_tokens": 64, "max_demonstration_tokens": 64},
        "rollout": {"max_new_tokens": 64},
    }
    for key, value in sections.items():
        *path, name = key.split("__") if not key.endswith("_target_") else (key.split("__")[0], "_target_")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    return values


@pytest.fixture(autouse=True)
def started_alone(monkeypatch):
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__learning_rate": 1}, "optim.learning_rate: unknown key; did you mean optim.lr?"),
        ({"a\nb": 1}, "a b: unknown key; did you mean data?"),
        ({"data__train": "\0/x"}, r"data.train: found '\x00/x', expected names of at most 255 bytes, without U+0000"),
        ({"model__path": "a" * 256},
         f"model.path: found '{'a' * 76}..., expected names of at most 255 bytes, without U+0000"),
        ({"data__train": "\ud800"}, r"data.train: found '\ud800', expected a path without lone surrogates"),
        ({"trainer__max_step": 1}, "trainer.max_step: unknown key; did you mean trainer.max_steps?"),
        ({"max_new_tokens": 1}, "max_new_tokens: unknown key; did you mean rollout.max_new_tokens?"),
        ({"controller__mu_inti": 0.1}, "controller.mu_inti: unknown key; did you mean controller.mu_init?"),
        ({"trainer__max_steps": "ten"}, "trainer.max_steps: expected int, found 'ten'"),
        ({"trainer__max_steps": True}, "trainer.max_steps: expected int, found True"),
        ({"trainer__seed": None}, "trainer.seed: expected int, found null"),
        ({"optim__lr": "fast"}, "optim.lr: expected float, found 'fast'"),
        ({"optim__lr": float("nan")}, "optim.lr: expected a finite float, found nan"),
        ({"optim__betas": [0.9]}, "optim.betas: expected [float, float], found [0.9]"),
        ({"model__path": 7}, "model.path: expected str or null, found 7"),
        ({"optim": 3}, "optim: expected keys of its own, found 3"),
        ({"controller__entropy_sign": 2}, "controller.entropy_sign: found 2, expected one of 1, -1"),
        ({"controller__entropy_sign": True}, "controller.entropy_sign: found True, expected one of 1, -1"),
        (
            {"data__train": "???"},
            "data.train: missing; expected str or [str, ...] or [{path, weight, name}, ...] or null (data.train=...)",
        ),
        ({"data__train": "${nowhere}"}, "data.train: Interpolation key 'nowhere' not found"),
        ({"task": None}, "task: missing; choose one with task=NAME"),
        ({"task___target_": "nemo_amft.tsks.X"}, "task._target_: no module nemo_amft.tsks"),
        ({"task___target_": "nemo_amft.types.Exampel"},
         "task._target_: nemo_amft.types has no class Exampel; did you mean Example?"),
        ({"task___target_": "nemo_amft.types.Example"},
         "task._target_: nemo_amft.types.Example has no dataclass attribute Config"),
        ({"task___target_": "nowhere/mine.py:Mine"}, "task._target_: no file nowhere/mine.py"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(UserError) as error:
        validate(raw(**changes))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint__keep": 0}, "checkpoint.keep: found 0, expected at least 1"),
        ({"rollout__temperature": 0}, "rollout.temperature: found 0.0, expected more than 0"),
        ({"controller__meta_gradient__val_samples": 1}, "controller.meta_gradient.val_samples: found 1, expected at least 2"),
        ({"controller__meta_gradient__trace_decay": 1},
         "controller.meta_gradient.trace_decay: found 1.0, expected a number from 0 to below 1"),
        ({"controller__mu_max": 1.2}, "controller.mu_max: found 1.2, expected a number from 0 to 1"),
        ({"controller__mu_min": 0.6}, "controller.mu_init: found 0.5, expected from mu_min 0.6 to mu_max 0.95"),
        ({"model__pipeline_model_parallel_size": 3, "model__scratch__num_hidden_layers": 6},
         "trainer.num_nodes * trainer.devices: found 1, expected a multiple of tensor * pipeline * context parallel size, "
         "1 * 3 * 1 = 3"),
        ({"model__sequence_parallel": True},
         "model.sequence_parallel: found true with model.tensor_model_parallel_size 1, expected 2 or more"),
        ({"model__expert_model_parallel_size": 2},
         "model.expert_model_parallel_size: found 2, expected 1: only dense models here"),
        ({"model__virtual_pipeline_model_parallel_size": 2},
         "model.virtual_pipeline_model_parallel_size: found 2 with model.pipeline_model_parallel_size 1, "
         "expected 2 or more pipeline ranks"),
        ({"model__recompute_method": "block"},
         "model.recompute_method: found block, expected model.recompute_granularity full, not null"),
        ({"optim__overlap_param_gather": True},
         "optim.overlap_param_gather: found true, expected use_distributed_optimizer and overlap_grad_reduce true"),
        ({"rollout__top_p": 0.9, "method__rl__importance_cap": 2.0},
         "rollout.top_p: found 0.9 with method.rl.importance_cap 2.0, expected 1: the weights would be biased"),
        ({"rollout__stop": ["a", ""]}, "rollout.stop: found an empty string, expected text that ends a response"),
        ({"validation__temperature": 2.5}, "validation.temperature: found 2.5, expected at most 2, vLLM's limit"),
        ({"rollout__top_p": 0.9, "rollout__temperature": 0.7},
         "rollout.temperature: found 0.7 with rollout.top_p 0.9 and rollout.top_k 0, expected 1: where these cut, log-probs to "
         "compare the policy's with are those of temperature 1"),
        ({"rollout__max_new_tokens": 500},
         "data.max_prompt_tokens + rollout.max_new_tokens: found 64 + 500 = 564, "
         "expected at most model.scratch.max_position_embeddings, 512"),
        ({"data__samples_per_prompt": 1},
         "data.samples_per_prompt: found 1, expected at least 2: grpo compares the responses to one prompt"),
        ({"method__rl__updates_per_rollout_batch": 3},
         "method.rl.updates_per_rollout_batch: found 3, expected a divisor of data.prompts_per_step, 128"),
        ({"method__rl__updates_per_rollout_batch": 2, "data__demonstrations_per_step": 1},
         "data.demonstrations_per_step: found 1, expected at least one for each of the step's 2 updates"),
        ({"data__train": "no/such/file.parquet"},
         "data.train: expected a file, a glob, a folder or a hub id, found 'no/such/file.parquet', which does not exist"),
        ({"model__transformer_impl": "transformer_engine"},
         "model.transformer_impl: found transformer_engine, expected Transformer Engine, which is not installed here"),
        ({"optim__optimizer_cpu_offload": True, "optim__use_distributed_optimizer": False},
         "optim.optimizer_cpu_offload: found true, expected optim.use_distributed_optimizer true with it"),
        ({"optim__optimizer_cpu_offload": True},
         "optim.optimizer_cpu_offload: found true, expected a GPU: elsewhere it is in host memory anyway"),
        ({"exp_manager__name": ""}, "exp_manager.name: found nothing, expected the run's name"),
        ({"exp_manager__explicit_log_dir": __file__},
         f"exp_manager.explicit_log_dir: found {__file__}, a file, expected a folder, new or of a run to continue"),
        ({"exp_manager__max_time_per_run": "4h"},
         "exp_manager.max_time_per_run: found 4h, expected days:hours:minutes:seconds such as 00:03:45:00"),
        ({"trainer__devices": 2},
         "trainer.num_nodes * trainer.devices: found 1 * 2 = 2, expected the number of processes started (no launcher, so 1); "
         "start with: torchrun --nproc-per-node 2 -m nemo_amft.train ..."),
        ({"task___target_": f"{__name__}.Picky", "trainer__max_steps": 5}, "task.meta_every: too rare for this run"),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_work_is_refused(changes, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        rules.check(validate(raw(**changes)))
    assert str(error.value) == message


def test_megatron_rollouts_refuse_a_pipeline(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = validate(raw(rollout__engine="megatron", trainer__devices=2, model__pipeline_model_parallel_size=2))
    (refusal,) = rules.violations(config)
    assert refusal.endswith("found 2, expected 1: rollout=megatron decodes with tensor and data parallelism only")


def test_heads_must_divide_by_the_tensor_parallel_size():
    config = validate(raw(trainer__devices=2, model__path="SmolLM2-135M-Instruct", model__tensor_model_parallel_size=2))
    assert list(rules.violations(config, on_this_machine=False)) == [
        "model.tensor_model_parallel_size: found 2, expected a divisor of the model's 9 heads and 3 key-value heads"
    ]


def test_the_mlp_must_divide_by_the_tensor_parallel_size():
    config = validate(raw(trainer__devices=2, model__scratch__intermediate_size=511, model__tensor_model_parallel_size=2))
    assert list(rules.violations(config, on_this_machine=False)) == [
        "model.tensor_model_parallel_size: found 2, expected a divisor of the model's intermediate size, 511"
    ]


def test_yaml_cannot_write_everything_and_gets_help():
    config = validate(raw(trainer__precision=32, optim__lr="1e-6", optim__weight_decay=0, optim__betas=[0, 0.5]))
    assert (config.trainer.precision, config.optim.lr, config.optim.weight_decay) == ("32", 1e-6, 0.0)
    assert config.optim.betas == (0.0, 0.5)


def test_a_section_keeps_its_own_defaults_where_the_user_gives_one_key():
    assert validate(raw(critic__optim={"eps": 1e-7})).critic.optim.lr == CriticConfig().optim.lr


def test_a_plugin_may_stand_in_a_file_of_the_user(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass C:\n    size: int = 3\n"
        "class Mine:\n    Config = C\n    def __init__(self, config, extra):\n        self.total = config.size + extra\n"
    )
    task = validate(raw(task={"_target_": f"{file}:Mine", "size": 4})).task
    assert task.build(10).total == 14
    file.with_name("broken.py").write_text("class Mine:\n  x = = 1\n")
    with pytest.raises(UserError, match=r"broken\.py line 2: invalid syntax"):
        validate(raw(task={"_target_": f"{tmp_path}/broken.py:Mine"}))


def test_what_is_dumped_composes_to_the_same_run_and_holds_no_secret():
    secrets = {"project": "p", "api_key": "SECRET", "settings": {"hf_token": "SECRET"}}
    overrides = {"eos_token_id": 2}
    config = validate(raw(exp_manager__wandb_logger_kwargs=secrets, model__path="o/m", model__config_overrides=overrides))
    dump = resolved(config)
    assert "SECRET" not in str(dump)
    assert dump["exp_manager"]["wandb_logger_kwargs"] == {"project": "p", "api_key": MASK, "settings": {"hf_token": MASK}}
    assert dump["model"]["config_overrides"] == overrides  # an id of a token is none
    assert dump["rollout"]["max_new_tokens"] == 64
    assert resolved(validate(dump)) == dump


def test_secrets_on_the_command_line_are_masked():
    assert mask_argument("exp_manager.wandb_logger_kwargs.api_key=S") == f"exp_manager.wandb_logger_kwargs.api_key={MASK}"
    assert mask_argument("exp_manager.wandb_logger_kwargs={api_key: S}") == f"exp_manager.wandb_logger_kwargs={MASK}"
    assert mask_argument("model.tokenizer=x") == "model.tokenizer=x"


# ---- composing conf/

CONFIGURATIONS = command_line.choices([command_line.CONF])
GROUPS = sorted(folder.name for folder in command_line.CONF.iterdir() if folder.is_dir())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_under_conf_is_sound(name, tmp_path):
    local = ["data.train=owner/set"] if name == "smollm2_gsm8k" else []
    config = load(["--config-name", name, *local], check=False)
    missing = f"model.path: expected a hub id or a folder, found {config.model.path!r}, which does not exist"
    assert [line for line in rules.violations(config, on_this_machine=False) if line != missing] == []


@pytest.mark.parametrize("choice", [f"{g}={c}" for g in GROUPS for c in command_line.choices([command_line.CONF], g)])
def test_every_choice_of_every_group_composes(choice):
    assert load(["--config-name", "quickstart", choice], check=False)


def test_a_key_that_the_yaml_does_not_mention_can_be_set():
    changes = ["optim.eps=1e-7", "critic.optim.lr=2e-6", "controller.mu_init=0.3"]
    config = load(["--config-name", "quickstart", *changes], check=False)
    assert (config.optim.eps, config.critic.optim.lr, config.controller.config.mu_init) == (1e-7, 2e-6, 0.3)


def test_folders_of_the_users_own_extend_and_replace_conf(tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("lr: 0.125\n")
    (tmp_path / "mine.yaml").write_text("defaults: [quickstart, _self_]\ntrainer: {max_steps: 7}\n")
    config = load(["--config-dir", str(tmp_path), "--config-name", "mine", "optim=mine"], check=False)
    assert (config.trainer.max_steps, config.optim.lr, config.trainer.devices) == (7, 0.125, 2)
    (tmp_path / "alone.yaml").write_text("trainer: {devices: 2}\n")
    with pytest.raises(UserError, match="method: missing; choose one"):
        load(["--config-path", str(tmp_path), "--config-name", "alone", "optim=mine"])  # a group that its defaults leave out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-name", "quikstart"],
         "--config-name quikstart: no such configuration; available: quickstart, "),
        ([], f"--config-name: missing; available: {', '.join(CONFIGURATIONS)}"),
        (["--config-name", "quickstart", "controller=papr"], "controller=papr: no such choice; available: paper, "),
        (["--config-name", "quickstart", "trainer.max_steps"], "trainer.max_steps: expected key=value"),
        (["--config-name", "quickstart", "--max-steps", "3"], "unrecognized arguments: --max-steps"),
        (["--config-name", "quickstart", "-m"], "--multirun: one process trains one run; start a job for each setting"),
        (["--config-dir", "nowhere", "--config-name", "x"], "--config-dir: no such folder, nowhere"),
    ],
)  # fmt: skip
def test_hydras_own_errors_are_one_line(arguments, message):
    with pytest.raises(UserError) as error:
        load(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


ROOT = Path(__file__).resolve().parents[2]


def _environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def _plan(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "nemo_amft.plan", *arguments],
        capture_output=True, text=True, timeout=120, env=_environment(**environment),
    )  # fmt: skip


def test_an_entry_point_ends_with_status_2_and_one_line_on_rank_0_only():
    first = _plan("--config-name", "quickstart", "optim.learning_rate=1")
    assert (first.returncode, first.stdout) == (2, "")
    assert first.stderr == "nemo_amft: error: optim.learning_rate: unknown key; did you mean optim.lr?\n"
    other = _plan("--config-name", "quickstart", "optim.learning_rate=1", RANK="1")
    assert (other.returncode, other.stdout, other.stderr) == (2, "", "")


def test_a_typing_mistake_is_found_without_importing_torch():
    code = (
        "import sys; from nemo_amft.config import load\n"
        "try: load.load(['--config-name', 'quickstart', 'trainer.max_steps=ten'])\n"
        "except ValueError: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=_environment()
    )
    assert done.stdout == "False\n"


# ---- NeMo


def test_the_run_directory_is_the_explicit_one_or_name_under_exp_dir():
    assert run_dir(ExpManagerConfig(exp_dir="runs", name="a")) == Path("runs/a")
    assert run_dir(ExpManagerConfig(explicit_log_dir="/x/y")) == Path("/x/y")


ENTRY = """
import sys
from nemo_amft.config import load, run_dir

def entry(config, checkpoint=None):
    for logger in run_dir.prepare(config):
        logger.log_metrics({"a": 1.0}, step=3)
        logger.finalize("success")
    print("steps", config.trainer.max_steps, run_dir.run_dir(config.exp_manager), checkpoint)
    return 5

load.main(entry, "A test.", own=("checkpoint",))
"""


@pytest.mark.slow  # NeMo is imported
def test_nemo_makes_loggers_on_rank_0_and_leaves_an_existing_run_directory_alone(tmp_path):
    script, run = tmp_path / "entry.py", tmp_path / "run"
    script.write_text(ENTRY)
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    single = ["trainer.devices=1", "model.tensor_model_parallel_size=1", "trainer.max_steps=7", "checkpoint=c/d"]
    secret = "exp_manager.wandb_logger_kwargs={settings: {api_key: SECRET}}"
    # A rank of a Slurm job that is not the first: it must not write event files.
    for environment, events in (({"SLURM_PROCID": "1", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "1"}, 0), ({}, 1)):
        done = subprocess.run(
            [sys.executable, script, "--config-name", "quickstart", *single, secret, f"exp_manager.explicit_log_dir={run}"],
            capture_output=True, text=True, timeout=240, env=_environment(**environment), cwd=tmp_path,
        )  # fmt: skip
        muttered = [line for line in done.stderr.splitlines() if not line.startswith("nemo_amft: note: ")]
        assert (done.returncode, done.stdout, muttered) == (5, f"steps 7 {run} c/d\n", [])
        assert len(list(run.glob("events.out.tfevents.*"))) == events
    assert (run / "metrics.jsonl").read_text() == "{}\n"
    assert not any(path.is_dir() for path in run.iterdir())
    assert "SECRET" not in (run / "cmd-args.log").read_text()


def test_a_configuration_of_ones_own_with_a_mistake_in_its_yaml_is_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [\n")
    with pytest.raises(UserError, match=r"^--config-name mine: while parsing a flow .*mine\.yaml"):
        load(["--config-dir", str(tmp_path), "--config-name", "mine"])
