"""Checkpoints: a resumed run is the uninterrupted one, on the same layout to the last bit; damage is seen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemo_amft.models import checkpoints, offloading
from nemo_amft.types import UserError
from tests.parallel import meta_steps
from tests.parallel.meta_steps import Case
from tests.parallel.ranks import run_ranks
from tests.parallel.test_layouts import assert_same

CASES = {
    "dp2": (2, Case()),
    "tp2_sp": (2, Case(tensor=2, sequence_parallel=True)),
    "pp2": (2, Case(pipeline=2)),
    "dp2_no_distributed_optimizer": (2, Case(distributed_optimizer=False)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_resumed_in_fresh_processes_equals_uninterrupted_bit_for_bit(folders, tmp_path, name):
    ranks, case = CASES[name]
    uninterrupted = run_ranks(ranks, meta_steps.save_after_two, folders[False], case, str(tmp_path))
    resumed = run_ranks(ranks, meta_steps.resume_after_two, folders[False], case, str(tmp_path))
    assert resumed == uninterrupted
    assert "meta/g_mu" in resumed[0][0], "the kept difference did not survive"


@pytest.mark.parametrize("distributed_optimizer", [True, False])
def test_models_that_have_made_no_step_are_saved_and_loaded(folders, tmp_path, distributed_optimizer):
    case = Case(distributed_optimizer=distributed_optimizer)
    saved = run_ranks(2, meta_steps.save_at_once, folders[False], case, str(tmp_path))
    assert run_ranks(2, meta_steps.resume_at_once, folders[False], case, str(tmp_path)) == saved


@pytest.mark.parametrize(
    ("written", "read"), [("tp2_sp", Case()), ("dp2", Case(tensor=2)), ("pp2", Case()), ("pp2", Case(pipeline=2, virtual=2))]
)
def test_another_layout_can_read_a_checkpoint(folders, tmp_path, written, read):
    """Without the kept difference, which belongs to the layout: so the entropy term alone moves mu in the first step."""
    ranks, case = CASES[written]
    expected = run_ranks(ranks, meta_steps.save_after_two, folders[False], case, str(tmp_path))[0][0]
    found = run_ranks(2, meta_steps.resume_after_two, folders[False], read, str(tmp_path))[0][0]
    same = [k for k in found if k.startswith(("loss/", "entropy/", "grad_norm/sft", "grad_norm/rl"))]
    assert_same([{k: found[k] for k in same}], [{k: expected[k] for k in same}])
    assert found["mu/missed"] == 1.0


def test_replicas_share_the_writing_and_the_checking(folders, tmp_path):
    (tmp_path / ".writing_step_00000007" / "policy").mkdir(parents=True)  # of a save that was killed
    saved = run_ranks(2, meta_steps.save_at_once, folders[False], Case(), str(tmp_path))
    (good,) = tmp_path.iterdir()
    written = {rank: sum(p.stat().st_size for p in (good / "policy").glob(f"__{rank}_*.distcp")) for rank in range(2)}
    assert min(written.values()) > 0.4 * sum(written.values()), written
    bad = good.with_name("step_00000009")
    shutil.copytree(good, bad)
    # Whichever rank looks at the damaged file, both take the other checkpoint.
    names = list(json.loads((bad / "manifest.json").read_text()))
    for name in [next(name for name in names[rank::2] if name.endswith(".distcp")) for rank in range(2)]:
        (bad / name).write_bytes((bad / name).read_bytes()[:-1])
        assert run_ranks(2, meta_steps.resume_at_once, folders[False], Case(), str(tmp_path)) == saved
        shutil.copy(good / name, bad / name)


def test_an_offloaded_optimiser_is_loaded_and_takes_over_weights(folders, tmp_path):
    """On a CPU nothing is offloaded and no step can be made (tests/gpu does), but state and main shards are the same."""
    case = Case(offload=True, precision="bf16")
    run_ranks(2, meta_steps.save_offloaded, folders[False], case, str(tmp_path))
    for moments, differences in run_ranks(2, meta_steps.load_offloaded, folders[False], case, str(tmp_path)):
        assert moments == {0.25}
        assert differences == {"as loaded": 0.0, "critic, from the policy": 0.0}


def test_copies_in_host_memory_follow_the_parameters():
    parameter, copy = torch.ones(3), torch.zeros(3)
    offloading.copy_to_host(SimpleNamespace(gpu_params_map_cpu_copy={parameter: copy}))
    assert copy.tolist() == [1.0] * 3


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path, folders):
    run_ranks(1, meta_steps.save_after_two, folders[False], replace(Case(), advantage="grpo"), str(tmp_path / "checkpoints"))
    (good,) = (tmp_path / "checkpoints").glob("step_*")
    assert checkpoints.damage(good) is None
    bad = good.with_name("step_00000009")
    shutil.copytree(good, bad)
    victim = max((p for p in (bad / "policy").iterdir() if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert "differs from what was written" in checkpoints.damage(bad)
    assert checkpoints.find(str(tmp_path)) == good
    victim.write_bytes(content[:-1])
    assert "bytes, expected" in checkpoints.damage(bad)
    victim.unlink()
    assert "is missing" in checkpoints.damage(bad)


def test_a_folder_without_checkpoints_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="found no intact checkpoint, expected a run directory"):
        checkpoints.find(str(tmp_path))
