"""A key that was given and does nothing is said to, with the reason; one that does something is not."""

import pytest

from nemo_amft.config.idle import idle
from nemo_amft.config.load import load

QUICKSTART = ["--config-name", "quickstart"]


def found(*overrides: str) -> list[str]:
    config = load([*QUICKSTART, "trainer.devices=1", "model.tensor_model_parallel_size=1", *overrides])
    return list(idle(config, [text.partition("=")[0] for text in overrides]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=grpo", "critic.optim.lr=1e-3"], "critic.optim.lr does nothing: PolicyGradient has no critic"),
        (["method=grpo", "method.rl.lam=0.9"], "method.rl.lam does nothing: method.rl.advantage is grpo"),
        (["method=sft", "data.samples_per_prompt=4"], "data.samples_per_prompt does nothing: SFT has no rollouts to train on"),
        (["controller.eta_mu=0", "controller.meta_every=5"], "controller.meta_every does nothing: controller.eta_mu is 0.0"),
        (["warmup.steps=0", "warmup.lr=1e-3"], "warmup.lr does nothing: warmup.steps is 0"),
        (
            ["model.micro_batch_tokens=64", "model.micro_batch_size=2"],
            "model.micro_batch_size does nothing: model.micro_batch_tokens is given",
        ),
        (["data.train=file.jsonl"], "data.train does nothing: ArithmeticTask generates its problems"),
        (["validation.every=120"], "validation.every does nothing: the run has 120 steps; it is done at the end in any case"),
        (["trainer.max_steps=5"], "controller.meta_every=5: no meta-update is made in 5 steps (trainer.max_steps)"),
    ],
)  # fmt: skip
def test_it_says_which_key_does_nothing_and_why(overrides, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.jsonl").touch()
    assert found(*overrides) == [said]


def test_keys_that_do_something_are_passed_over():
    assert found("critic.optim.lr=1e-3", "method.rl.lam=0.9", "controller.meta_every=10", "warmup.lr=1e-3") == []


def test_every_rule_speaks_of_keys_that_there_are():
    from nemo_amft.config import idle as module
    from nemo_amft.config.rules import lookup

    config = load([*QUICKSTART, "trainer.devices=1", "model.tensor_model_parallel_size=1"])
    for prefixes, _ in module.RULES:
        for prefix in prefixes:
            head, _, rest = prefix.rstrip(".").rpartition(".")
            owner = lookup(config, head) if head else config
            assert any(name.startswith(rest) for name in vars(owner)), prefix
