"""TRL's own environment: `.venv-trl` in the repository's root, from requirements-trl.txt, built if it is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements-trl.txt"
FOLDER = Path(__file__).parents[1] / ".venv-trl"


def trl_python() -> str:
    """The interpreter to run TRL's side with. The first call takes a minute or two and needs pip's index."""
    python, stamp = FOLDER / "bin" / "python", FOLDER / "built-from.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        print(f"installing {REQUIREMENTS.name} into {FOLDER.name} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(REQUIREMENTS)]
        subprocess.run([str(python), *install], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return str(python)


if __name__ == "__main__":
    print(trl_python())
