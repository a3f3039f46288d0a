"""A run directory belongs to one run."""

import pytest
import yaml

from nemo_amft.algorithms.run import refuse_another_run
from nemo_amft.config.load import load
from nemo_amft.config.validate import resolved
from nemo_amft.types import UserError


def configuration(*overrides: str):
    return load(["--config-name", "quickstart", *overrides], check=False)


@pytest.fixture
def run_dir(tmp_path):
    """Of a run of the quickstart."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(resolved(configuration())))
    return tmp_path


@pytest.mark.parametrize(
    "overrides",
    [(), ("trainer.max_steps=999", "optim.lr=1e-5"), ("model.tensor_model_parallel_size=1",), ("controller.eta_mu=0",)],
)
def test_what_may_change_between_processes_of_a_run(run_dir, overrides):
    refuse_another_run(run_dir, configuration(*overrides))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=grpo", "method: found another"),
        ("method.rl.clip_ratio=0.3", "method: found another"),
        ("task.modulus=7", "task: found another"),
        ("trainer.seed=2", "trainer.seed=2: found another"),
        ("model.chat_template_kwargs={enable_thinking:false}", "model.chat_template_kwargs: found another"),
        ("controller=fixed", "controller._target_=nemo_amft.algorithms.controllers.fixed.Fixed: found another"),
    ],
)
def test_another_run_is_refused(run_dir, override, said):
    with pytest.raises(UserError) as raised:
        refuse_another_run(run_dir, configuration(override))
    assert said in str(raised.value)
    assert str(run_dir / "config.yaml") in str(raised.value)


def test_a_new_folder_is_for_any_run(tmp_path):
    refuse_another_run(tmp_path, configuration("method=grpo"))
