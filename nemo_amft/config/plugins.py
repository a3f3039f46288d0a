"""Plug-in sections (`method`, `controller`, `task`): a class named by `_target_`, configured by the keys beside it.

`_target_` is a dotted path (nemo_amft.tasks.math.Mathematics) or a class in a file of the user's own (my/task.py:MyTask).
The class carries its frozen dataclass of settings as the attribute `Config`, and may carry a static
`validate(config, plugin_config)` that raises UserError for combinations it cannot work with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_amft.config import typed
from nemo_amft.types import UserError


@dataclass(frozen=True)
class Plugin:
    """A class and its settings, ready to build."""

    cls: type
    config: Any
    """An instance of `cls.Config`."""
    target: str = ""
    """`_target_`, as the user wrote it but for a leading ~."""

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """`cls(config, *args, **kwargs)`."""
        return self.cls(self.config, *args, **kwargs)


def load_plugin(section: str, values: Any) -> Plugin:
    """The plug-in that `values` describes. `section` is its key. Raises UserError."""
    if not isinstance(values, Mapping):
        raise UserError(f"{section}: expected a section with _target_ (as {section}=NAME gives), found {typed.show(values)}")
    target = values.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{section}._target_: expected dotted.path.Class or file.py:Class, found {typed.show(target)}")
    target = typed.at_home(target)
    cls = _find(f"{section}._target_", target, "Class", lambda value: isinstance(value, type))
    settings = getattr(cls, "Config", None)
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise UserError(f"{section}._target_: {target} has no dataclass attribute Config")
    known = list(typed.keys_of(settings, section))
    rest = {name: value for name, value in values.items() if name != "_target_"}
    return Plugin(cls, typed.build(settings, rest, section, known or [f"{section}._target_"]), target)


def load_function(key: str, target: str) -> Callable[..., Any]:
    """The function that `target` names, as dotted.path.function or file.py:function. `key` is its key. Raises UserError."""
    return _find(key, target, "function", lambda value: callable(value) and not isinstance(value, type))


def _find(key: str, target: str, wanted: str, is_wanted: Callable[[Any], bool]) -> Any:
    """What `target` names, if it `is_wanted`, a `wanted` ("Class", "function")."""
    place, _, name = target.rpartition(":" if ":" in target else ".")
    if not place or not name or target.endswith(".py"):
        raise UserError(f"{key}: expected dotted.path.{wanted} or file.py:{wanted}, found {target!r}")
    try:
        module = _import_file(Path(place)) if ":" in target else importlib.import_module(place)
    except FileNotFoundError:
        raise UserError(f"{key}: no file {place}") from None
    except ModuleNotFoundError as error:
        # A library that the module itself misses is another mistake than a mistyped module.
        absent = error.name and (place == error.name or place.startswith(error.name + "."))
        reason = f"no module {error.name}" if absent else f"{place} needs the module {error.name}, which is not installed"
        raise UserError(f"{key}: {reason}") from error
    except SyntaxError as error:
        raise UserError(f"{key}: {error.filename} line {error.lineno}: {error.msg}") from error
    except (ImportError, OSError) as error:
        raise UserError(f"{key}: cannot import {place}: {typed.one_line(error)}") from error
    found = getattr(module, name, None)
    if not is_wanted(found):
        there = [n for n, v in vars(module).items() if is_wanted(v) and getattr(v, "__module__", None) == module.__name__]
        hint = f"; did you mean {typed.nearest(name, there)[0]}?" if there else ""
        raise UserError(f"{key}: {place} has no {wanted.lower()} {name}{hint}")
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    # Same name on every rank, another for another file of that name; dataclasses and pickle look it up in sys.modules.
    name = f"nemo_amft_plugin_{path.stem}_{hashlib.sha1(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
