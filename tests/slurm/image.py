"""Builds the CPU variant of containers/Dockerfile without a registry: debootstrap makes the base, buildah the image.

python -m tests.slurm.image FOLDER          the image as a folder, as srun --container-image takes it
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TAG = "localhost/nemo-amft-test"
ISOLATION = ("--isolation", "chroot", "--network", "host")


def lacks() -> str | None:
    """Why no image can be built here, or None."""
    if os.geteuid() != 0:
        return "building an image without a registry needs root"
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name, path=_path()) is None]
    return f"{', '.join(missing)}: not installed" if missing else None


def build(folder: Path) -> None:
    """Build, and put the image's files into `folder`, its environment in etc/environment as enroot import does."""
    with tempfile.TemporaryDirectory() as scratch:
        mounts = _pip_mounts(Path(scratch))
        if f"{TAG}-base:latest" not in _call("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").split():
            base = Path(scratch) / "base"
            _call("debootstrap", "--variant=minbase", "bookworm", str(base))
            container = _call("buildah", "from", "scratch").strip()
            _call("buildah", "add", "--quiet", container, str(base), "/")
            _call("buildah", "commit", "--quiet", "--rm", container, f"{TAG}-base")
        _call(
            "buildah", "bud", "--layers", *ISOLATION, *mounts, "--tag", TAG, "--file", "containers/Dockerfile",
            "--ignorefile", "containers/Dockerfile.dockerignore",
            "--build-arg", "STACK=cpu", "--build-arg", f"BASE_IMAGE={TAG}-base", str(REPOSITORY),
        )  # fmt: skip
    _unpack(folder)


def _unpack(folder: Path) -> None:
    container = _call("buildah", "from", "--pull-never", TAG).strip()
    source = _call("buildah", "mount", container).strip()
    _call("cp", "--archive", source, str(folder))  # which copies device files as such; Python would read them
    described = json.loads(_call("buildah", "inspect", "--type", "container", container))
    (folder / "etc" / "environment").write_text("\n".join(described["OCIv1"]["config"]["Env"]) + "\n")
    _call("buildah", "rm", container)


def _pip_mounts(scratch: Path) -> list[str]:
    """Options that let pip inside reach what pip reaches here: its settings and certificates, at neutral paths, and the
    folders that the settings name."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = ast.literal_eval(value)
    certificates = settings.get("cert") or os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    mounts = []
    if certificates:
        mounts += ["--volume", f"{Path(certificates).resolve()}:/run/host-ca.crt:ro"]
        settings["cert"] = "/run/host-ca.crt"
    file = scratch / "pip.conf"
    indent = "\n    "
    file.write_text("[global]\n" + "".join(f"{key} = {indent.join(value.split())}\n" for key, value in settings.items()))
    mounts += ["--volume", f"{file}:/etc/pip.conf:ro"]
    for word in {word for value in settings.values() for word in value.split()}:
        # An index that is a folder links to files in a folder beside it.
        folder = Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)
        if folder.is_absolute() and folder.is_dir():
            mounts += ["--volume", f"{folder}:{folder}:ro"]
    return mounts


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"PATH": _path()})
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[:3])} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done.stdout


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


if __name__ == "__main__":
    build(Path(sys.argv[1]))
