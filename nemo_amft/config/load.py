"""The way into every entry point: compose, validate, check, run. A user's mistake is one line on stderr and exit status 2.

By hydra alone, in about a second. NeMo, whose import takes nine seconds of processor time (it brings torch, lightning and
megatron), comes in where its exp_manager makes the run directory (run_dir.py), and only on rank 0, which alone writes there.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nemo_amft.config import command_line, launcher, rules
from nemo_amft.config.command_line import CommandLine
from nemo_amft.config.idle import idle
from nemo_amft.config.schema import Config
from nemo_amft.config.validate import resolved, validate
from nemo_amft.observe.quiet import quiet_libraries
from nemo_amft.types import RunError, UserError

__all__ = ["load", "main", "resolved"]

SAY_IDLE = ("nemo_amft.train", "nemo_amft.plan")
"""The entry points for which most keys are meant; an evaluation has no use for a learning rate, and that is no mistake."""


def main(
    entry: Callable[..., int | None],
    description: str,
    *,
    own: Sequence[str] = (),
    check: bool = True,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Run `entry(config, **own)` on the configuration of the command line and leave the process with its status.

    `own`: arguments that are the entry point's and no keys of the configuration; they arrive as strings, where given.
    `check`: apply the rules (off for an entry point that reports broken rules itself).
    """
    quiet_libraries()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    module = _module(entry)
    if {"-h", "--help"} & set(arguments):
        print(command_line.usage(f"python -m {module}", description, own))
        sys.exit(0)
    try:
        given = _take(arguments, own)
        config = load(arguments, check=check, module=module, say_idle=module in SAY_IDLE)
        sys.exit(entry(config, **given) or 0)
    except UserError as error:
        report(error)
        sys.exit(2)
    except RunError as error:  # the rank that raises it speaks for those that wait for it
        print(f"nemo_amft: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)


def load(arguments: Sequence[str], *, check: bool = True, module: str = "nemo_amft.train", say_idle: bool = False) -> Config:
    """The configuration that `arguments` describe. Raises UserError; see `main`. `say_idle`: rank 0 names the keys that do
    nothing, for an entry point that is about to begin what it describes; where many runs share overrides, each has some."""
    line, composed = command_line.composed(command_line.parse(arguments))
    if line.shows:
        _print_by_nemo(line)
        sys.exit(0)
    config = validate(composed)
    if check:
        rules.check(config, module=module)
    if say_idle and launcher.rank() == 0:
        for note in idle(config, line.given()):
            print(f"nemo_amft: note: {note}", file=sys.stderr, flush=True)
    return config


def report(error: UserError) -> None:
    """Print a user's mistake once: every rank reads the same configuration, so rank 0 speaks for all."""
    if launcher.rank() == 0:
        print(f"nemo_amft: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def _print_by_nemo(line: CommandLine) -> None:
    """What hydra prints of a configuration instead of running it (--cfg job), by NeMo's hydra_runner."""
    hydra_runner = _import_hydra_runner()
    before = sys.argv
    sys.argv = [before[0], *line.argv()]
    try:
        hydra_runner(config_path=str(line.folder), config_name=line.name)(lambda composed: None)()
    finally:
        sys.argv = before


def _import_hydra_runner() -> Callable[..., Any]:
    """NeMo's import, without its notices of packages that are absent by design (Transformer Engine on CPU, telemetry)."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nemo.core.config import hydra_runner
            from nemo.utils import logging as nemo_logging
    finally:
        logging.disable(logging.NOTSET)
    nemo_logging.setLevel(logging.ERROR)
    return hydra_runner


def _take(arguments: list[str], own: Sequence[str]) -> dict[str, str]:
    """Remove the entry point's own arguments from the list and return them."""
    given = {name: text for name, _, text in (argument.partition("=") for argument in arguments) if name in own}
    arguments[:] = [argument for argument in arguments if argument.partition("=")[0] not in given]
    return given


def _module(entry: Callable[..., Any]) -> str:
    """The dotted name to give to `python -m`, also where it was started so and is now called __main__."""
    if entry.__module__ != "__main__":
        return entry.__module__
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "nemo_amft.train"
