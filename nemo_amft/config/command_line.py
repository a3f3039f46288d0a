"""Hydra's command line, with `key=value` for any key of the schema and one-line errors.

Hydra itself wants `+key=value` for a key that the YAML does not mention. Here the YAML holds only what differs from the
schema's defaults, so the plus is put in for the user. A mistyped key is refused by the schema afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser  # NeMo's hydra_runner uses the same module
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from nemo_amft.config import override, typed
from nemo_amft.config.validate import MASK, mask_argument
from nemo_amft.types import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
"""conf/ of this package: in a checkout a link to the folder beside it, in an installed wheel a copy."""


@dataclass(frozen=True)
class CommandLine:
    """What the user asked for."""

    name: str
    """--config-name, without .yaml."""
    folder: Path
    """--config-path, or conf/."""
    extra_folder: Path | None
    """--config-dir: searched after `folder`."""
    overrides: tuple[str, ...]
    shows: tuple[str, ...]
    """Options of hydra that print the configuration instead of running, such as --cfg job."""

    @property
    def folders(self) -> list[Path]:
        return [self.folder, *([self.extra_folder] if self.extra_folder else [])]

    def given(self) -> list[str]:
        """The keys that were set, in dotted form; of a choice of a group its name."""
        return [text.lstrip("+~").partition("=")[0] for text in self.overrides]

    def argv(self) -> list[str]:
        """Arguments for hydra_runner that compose the same configuration."""
        extra = ["--config-dir", str(self.extra_folder)] if self.extra_folder else []
        return ["--config-path", str(self.folder), "--config-name", self.name, *extra, *self.shows, *self.overrides]


def parse(arguments: Sequence[str]) -> CommandLine:
    """Read the arguments. Raises UserError for an unknown option, configuration or group choice."""
    parser = get_args_parser()
    parser.error = _refuse  # argparse would print its whole usage
    parsed = parser.parse_intermixed_args(list(arguments))  # options may stand between overrides
    if parsed.multirun:
        raise UserError("--multirun: one process trains one run; start a job for each setting")
    for option, given in (("--resolve", parsed.resolve), ("--package", parsed.package)):
        if given and not parsed.cfg:
            raise UserError(f"{option}: expected with --cfg, which prints the configuration")
    folder = _folder("--config-path", parsed.config_path) or CONF
    extra = _folder("--config-dir", parsed.config_dir)
    shows = (
        *(("--cfg", parsed.cfg) if parsed.cfg else ()),
        *(("--resolve",) if parsed.resolve else ()),
        *(("--package", parsed.package) if parsed.package else ()),
        *(("--info", parsed.info) if parsed.info else ()),
    )
    line = CommandLine("", folder, extra, (), shows)
    name = (parsed.config_name or "").removesuffix(".yaml")
    available = choices(line.folders)
    if not name:
        raise UserError(f"--config-name: missing; available: {', '.join(available)}")
    if not any((place / f"{name}.yaml").is_file() for place in line.folders):
        raise UserError(f"--config-name {name}: no such configuration; available: {_list(name, available)}")
    _refuse_loose_words(parsed.overrides)
    return replace(line, name=name, overrides=tuple(_rewrite(text, line.folders) for text in parsed.overrides))


def composed(line: CommandLine) -> tuple[CommandLine, DictConfig]:
    """The command line as hydra wants it, and what it composes to: by hydra alone, so within a second. Raises UserError."""
    try:
        with _hydra(line.folders) as hydra:
            defaults = hydra.config_loader.compute_defaults_list(line.name, [], RunMode.RUN).defaults
            chosen = {entry.config_path.rpartition("/")[0] for entry in defaults if entry.config_path}
            # A group that the YAML's defaults list leaves out has to be added, not chosen again.
            overrides = tuple(
                f"+{text}" if _is_choice(text, line.folders) and text.partition("=")[0] not in chosen else text
                for text in line.overrides
            )
            result = hydra.compose_config(line.name, list(overrides), RunMode.RUN, from_shell=False)
            with open_dict(result):
                del result["hydra"]
            return replace(line, overrides=overrides), result
    except UserError:
        raise
    except Exception as error:  # hydra's, OmegaConf's and YAML's have a class for each way in which a file is no configuration
        raise UserError(f"--config-name {line.name}: {typed.one_line(error).partition(' Config search path')[0]}") from error


@contextlib.contextmanager
def _hydra(folders: Sequence[Path]) -> Iterator[Hydra]:
    """Hydra over these folders, as hydra_runner sets it up; its public compose() takes no primary file from --config-dir."""
    version.setbase("1.3")
    search_path = create_config_search_path(str(folders[0]))
    for folder in folders[1:]:
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("nemo_amft", search_path)
    finally:
        GlobalHydra.instance().clear()


def choices(folders: Sequence[Path], group: str = "") -> list[str]:
    """Names of the YAML files of a group, or of whole configurations."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def _refuse_loose_words(arguments: Sequence[str]) -> None:
    """Raises UserError for a word that is no key=value, which a path with a blank leaves where the shell gets no quotes."""
    for i, word in enumerate(arguments):
        if "=" in word or word.startswith("~"):
            continue
        if i == 0:
            raise UserError(f"{word}: expected key=value")
        whole = " ".join((arguments[i - 1], *itertools.takewhile(lambda text: "=" not in text, arguments[i:])))
        key, _, value = mask_argument(whole).partition("=")
        shown = word if f"{key}={value}" == whole else MASK
        raise UserError(
            f"{shown}: expected key=value; where it belongs to {key}, in a shell: {override.in_a_shell(key, value)}"
        )


def _rewrite(text: str, folders: Sequence[Path]) -> str:
    """One override as hydra wants it."""
    if text.startswith(("~", "hydra.", "hydra/")):
        return text
    text = override.with_homes_quoted(text)
    text = text if text.startswith("+") or _is_choice(text, folders) else f"++{text}"
    override.parse(text)
    return text


def _is_choice(text: str, folders: Sequence[Path]) -> bool:
    """Whether `text` picks a file of a group, as in method=grpo. Raises UserError if there is no such file."""
    group, _, choice = text.partition("=")
    if not group or group[0] in "+~" or not any((folder / group).is_dir() for folder in folders) or choice.startswith("{"):
        return False
    available = choices(folders, group)
    if choice.removesuffix(".yaml") not in available:
        raise UserError(f"{text}: no such choice; available: {_list(choice, available)}")
    return True


def _folder(option: str, given: str | None) -> Path | None:
    if given is None:
        return None
    # Relative to where the user stands; hydra's "relative to the script" would mean inside this package.
    folder = typed.local_path(given).resolve()
    if not folder.is_dir():
        raise UserError(f"{option}: no such folder, {given}")
    return folder


def _list(name: str, available: Sequence[str]) -> str:
    return ", ".join(typed.nearest(name, available)) or "none"


def _refuse(message: str) -> None:
    raise UserError(f"{message} (settings are key=value; --help explains)")


def usage(program: str, description: str, own: Sequence[str] = ()) -> str:
    """What --help prints."""
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    extra = "".join(f" [{name}=...]" for name in own)
    lines = [
        f"usage: {program} --config-name NAME{extra} [key=value ...]",
        "",
        description.strip(),
        "",
        f"configurations: {', '.join(choices([CONF]))}",
        *(f"{group}=: {', '.join(choices([CONF], group))}" for group in groups),
        "",
        "Every key of nemo_amft/config/schema.py can be set: trainer.max_steps=10 optim.lr=1e-6 controller.mu_init=0.3",
        "--config-dir DIR adds configurations and groups of your own, --config-path DIR replaces conf/,",
        "--cfg job prints the composed YAML.",
    ]
    return "\n".join(lines)
