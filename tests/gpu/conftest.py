"""Tests of the CUDA paths: skipped where there is no GPU.

GPU_TESTS_DEVICE=cpu runs them with the CPU on both sides: a rehearsal of the tests themselves, which says nothing about a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.parallel.conftest import folders  # noqa: F401  (a fixture: tiny models)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or os.environ.get("GPU_TESTS_DEVICE") == "cpu":
        return
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: torch.cuda.is_available() is false here"))


@pytest.fixture(scope="session")
def device() -> str:
    return os.environ.get("GPU_TESTS_DEVICE", "cuda")
