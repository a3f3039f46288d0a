"""Where problems come from: a source's name, to the files or the hub set that it stands for."""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_amft.data.readers import EXPECTED, Placed, kind_of, read
from nemo_amft.types import UserError

HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]*))?(:(?P<split>[\w.-]+))?")

FOLDER = re.compile(r"(?P<path>[^:]+)(:(?P<config>[\w.-]*))?(:(?P<split>[\w.-]+))?")

FILE_SUFFIXES = {".csv", ".tsv", ".txt", ".zip", ".pkl", ".xlsx", ".yaml", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow"}
FILE_SUFFIXES |= {".gz", ".zst", ".zstd", ".bz2", ".xz"}
"""What makes a name a file's rather than a hub id, which may hold dots too."""


def rows_of(source: str, split: str) -> list[Iterator[Placed]]:
    """The rows of each file that `source` stands for, or of the hub set; of several splits, those of `split`.

    `source` is a file, a glob, a folder as the hub has them or as `save_to_disk` writes them, or a hub id; the latter two may
    name a configuration and a split of their own: NAME:CONFIG:SPLIT. Raises UserError.
    """
    if (files := _globbed(source)) is not None:
        if not files:
            raise UserError(f"{source}: found no file that matches, expected at least one")
        return [read(path) for path in files]
    if (folder := _folder(source)) is not None:
        return _folder_rows(folder["path"], folder["config"] or None, folder["split"], split)
    path = Path(source)
    if not is_local(source) and (hub := HUB_ID.fullmatch(source)):
        return [_hub_rows(hub["id"], hub["config"] or None, hub["split"] or split)]
    return [read(path)]


def sources_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The sources that a key of the configuration names."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def is_local(source: str) -> bool:
    """Whether `source` can only be on this machine, or is there."""
    path = Path(source)
    named = path.suffix.lower() in FILE_SUFFIXES or source.startswith(("/", ".", "~")) or source.count("/") > 1
    return not source.strip() or named or glob.has_magic(source) or path.exists() or _folder(source) is not None


def name_of(source: str) -> str:
    """A short name for the problems of `source`: without folders and extensions; a hub id as it is."""
    if not is_local(source):
        return source
    path = Path(source)
    name = path.parent.name if glob.has_magic(path.name) else path.name
    while Path(name).suffix.lower() in FILE_SUFFIXES:
        name = Path(name).stem
    return name or "data"


def missing(source: str) -> str | None:
    """What to say of a source on this machine that is not there; None for one that is, or that may be on the hub."""
    if not is_local(source) or _folder(source) is not None:
        return None
    there = source.strip() and (_globbed(source) or Path(source).exists())
    return None if there else f"expected a file, a glob, a folder or a hub id, found {source!r}, which does not exist"


def _globbed(source: str) -> list[Path] | None:
    """The files that a glob matches, in the order of their names; None for a source that is none."""
    if not glob.has_magic(source) or Path(source).exists():
        return None
    found = sorted(glob.glob(str(Path(source)), recursive=True))
    return [Path(path) for path in found if Path(path).is_file()]


# ---- folders


def _folder(source: str) -> re.Match[str] | None:
    parts = FOLDER.fullmatch(source)
    return parts if parts and Path(parts["path"]).is_dir() else None


def _folder_rows(name: str, config: str | None, chosen: str | None, split: str) -> list[Iterator[Placed]]:
    folder = Path(name)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        if config is not None:
            raise UserError(f"{name}:{config}: found a configuration, expected none ({name}::SPLIT): it is from save_to_disk")
        return [_saved_rows(folder, chosen, split)]
    splits = _data_files(folder, config)
    found = _of_split(name, splits, chosen, split)
    readable = [Path(path) for path in splits[found] if kind_of(Path(path)) is not None]
    if not readable:
        raise UserError(f"{name}: found {Path(splits[found][0]).name} and no other kind of file, expected {EXPECTED}")
    return [read(path) for path in readable]


def _data_files(folder: Path, config: str | None) -> Mapping[str, Sequence[str]]:
    """Split -> files, as the hub tells them: by the README's list of configurations, else by the names of files and folders."""
    import datasets

    try:
        with tempfile.TemporaryDirectory() as cache:  # a lock is all that is put there
            return datasets.load_dataset_builder(str(folder), config, cache_dir=cache).config.data_files or {}
    except datasets.data_files.EmptyDatasetError:
        raise UserError(f"{folder}: found a folder without data files, expected {EXPECTED}") from None
    except Exception as error:  # the library raises many kinds, for configurations and contents
        found = f"a folder that cannot be read as a data set ({_one_line(error)})"
        raise UserError(f"{folder}: found {found}, expected FOLDER or FOLDER:CONFIG:SPLIT of one") from None


def _saved_rows(folder: Path, chosen: str | None, split: str) -> Iterator[Placed]:
    """Of what the datasets library's `save_to_disk` has written."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise UserError(f"{folder}: cannot be read as what save_to_disk writes ({_one_line(error)})") from None
    if isinstance(saved, datasets.DatasetDict):
        name = _of_split(str(folder), saved, chosen, split)
        folder, saved = folder / name, saved[name]
    elif chosen not in (None, str(saved.split)):
        raise UserError(f"{folder}::{chosen}: found a set without splits, expected none to be named")
    return _numbered(str(folder), saved.with_format(None))


def _of_split(name: str, splits: Mapping[str, Any], chosen: str | None, split: str) -> str:
    """The split to read: the one that is asked for, or the only one there is."""
    wanted = chosen or split
    if wanted in splits:
        return wanted
    if len(splits) == 1 and chosen is None:
        return next(iter(splits))
    raise UserError(f"{name}: found the splits {', '.join(splits)}, expected {wanted!r} among them (or {name}::SPLIT)")


# ---- the hub


def _hub_rows(hub_id: str, config: str | None, split: str) -> Iterator[Placed]:
    import datasets

    try:
        rows = datasets.load_dataset(hub_id, config, split=split)
    except Exception as error:  # the hub client raises many kinds, for network, name, login and split
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(f"{hub_id}: cannot load split {split!r} from the hub ({reason})") from None
    return _numbered(f"{hub_id} {split}", rows)


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Placed]:
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
