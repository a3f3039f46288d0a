"""Writing files: so that a reader never sees half of one, and with a word about the disk where it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemo_amft.types import RunError

FULL = "No space left on device, or a limit on the size of files"

_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE,
}  # fmt: skip
"""What a disk that is full, gone, or not ours raises."""


class UnwrittenError(RunError):
    """A file of the run's own could not be written, for a reason that is the disk's."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context of writing `path`. Raises UnwrittenError where the disk is why it fails."""
    try:
        yield
    except Exception as error:
        fault = disk_fault(error)
        if fault is None or isinstance(error, RunError):
            raise
        raise UnwrittenError(unwritten(path, fault)) from error


def unwritten(path: Path, fault: str) -> str:
    """What to say of `path`, which was not written: why, and how much room there is."""
    return f"{path} could not be written: {fault} ({_room(path)})"


def disk_fault(error: BaseException) -> str | None:
    """The system's words, where a disk is at the bottom of `error`; None where it is something else. Writers of archives, in
    other languages, tell of it in text, torch's of a wrong position alone, and megatron-core 0.19's of an error's class."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for one in chain:
        if isinstance(one, OSError) and one.errno in _DISK:
            return os.strerror(one.errno)
        for number in re.findall(r"\[Errno (\d+)\]|\(os error (\d+)\)", str(one)):
            if (found := int("".join(number))) in _DISK:
                return os.strerror(found)
    torn = r"unexpected pos \d|iostream error|PytorchStreamWriter failed|Worker failure: .*<class 'OSError'>"
    return FULL if any(re.search(torn, str(one)) for one in chain) else None


def _room(path: Path) -> str:
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return f"{_size(usage.free)} of {_size(usage.total)} free in {folder}"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: after a crash the old content or the new one is there, never a mixture. Raises
    UnwrittenError."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
