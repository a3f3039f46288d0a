"""What a user may name as a checkpoint, and how one is told from another. Nothing here loads weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nemo_amft.config.rules import looks_local


def hub_model_of(checkpoint: str) -> str | None:
    """The hub model that `checkpoint` names: a folder in hub format, the hf/ of a run directory, or a hub id. None for a
    training checkpoint, and for a path where nothing is."""
    folder = Path(checkpoint)
    found = next((place for place in (folder, folder / "hf") if (place / "config.json").exists()), None)
    if found is not None:
        return str(found)
    return checkpoint if not folder.exists() and not looks_local(checkpoint) else None


def fingerprint(folder: Path) -> str:
    """What tells one model's weights from another's: sizes, and samples of the content, of the files of a hub folder; of a
    training checkpoint its manifest, which has the checksums. 16 hexadecimal digits."""
    digest = hashlib.sha256()
    manifest = folder / "manifest.json"
    for file in [manifest] if manifest.exists() else sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            for start in (0, size // 2, max(0, size - 65536)):
                content.seek(start)
                digest.update(content.read(65536))
    return digest.hexdigest()[:16]
