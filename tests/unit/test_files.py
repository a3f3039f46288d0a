"""A disk that takes no more is named in one line, and what was there stays."""

import contextlib
import resource
from errno import ECONNRESET, ENOSPC

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from nemo_amft.observe.files import FULL, UnwrittenError, disk_fault, write_atomically, writing
from nemo_amft.observe.metrics import MetricsWriter, read_metrics
from nemo_amft.types import RunError


@contextlib.contextmanager
def room(size: int):
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_could_not_be_written_is_as_it_was(tmp_path):
    path = tmp_path / "config.yaml"
    write_atomically(path, "before")
    with room(10), pytest.raises(UnwrittenError) as raised:
        write_atomically(path, "x" * 11)
    assert str(raised.value).startswith(f"{path} could not be written: File too large (")
    assert str(raised.value).endswith(f" free in {tmp_path})")
    assert isinstance(raised.value, RunError)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert path.read_text() == "before"


def test_a_record_that_could_not_be_written_ends_the_run_and_spoils_none_before(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write("train", 0, {"mu": 0.5})
    size = writer.path.stat().st_size
    with room(size + 5), pytest.raises(UnwrittenError, match=r"metrics\.jsonl could not be written: File too large"):
        writer.write("train", 1, {"mu": 0.5})
    assert writer.path.stat().st_size == size + 5
    with MetricsWriter(tmp_path) as again:
        again.rewind("train", 1)
        again.write("train", 1, {"mu": 0.25})
    assert [(record["step"], record["mu"]) for record in read_metrics(tmp_path)] == [(0, 0.5), (1, 0.25)]


def test_weights_and_archives_tell_of_a_full_disk_in_their_own_words(tmp_path):
    tensor = {"a": torch.zeros(1000)}
    with room(2000), pytest.raises(RuntimeError) as of_torch:
        torch.save(tensor, tmp_path / "a.pt")
    assert disk_fault(of_torch.value) == FULL
    with room(2000), pytest.raises(UnwrittenError, match=r"hf could not be written: File too large"), writing(tmp_path / "hf"):
        save_file(tensor, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("Worker failure: [Errno 28] No space left on device"), "No space left on device"),
        (SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), FULL),
        (ConnectionResetError(ECONNRESET, "Connection reset by peer"), None),
        (FileNotFoundError(2, "No such file or directory"), None),
        (ValueError("[Errno of a kind]"), None),
    ],
)
def test_a_disk_is_told_from_other_faults(error, fault):
    wrapped = RuntimeError("could not be saved")
    wrapped.__cause__ = error
    assert disk_fault(error) == disk_fault(wrapped) == fault
