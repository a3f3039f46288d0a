"""One Slurm for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_amft.observe.metrics import read_metrics
from tests.slurm import cluster as local
from tests.slurm.cluster import SMALL, Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    if reason := local.lacks():
        pytest.skip(reason)
    cluster = local.start()
    yield cluster
    local.stop(cluster)


@pytest.fixture(scope="session")
def uninterrupted(slurm, tmp_path_factory) -> list[dict]:
    """Metrics of a run over two nodes that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    job = slurm.submit("amft_math.sh", *SMALL, RUN_DIR=str(run_dir))
    assert job.wait() == "COMPLETED", job.log
    return read_metrics(run_dir)
