"""Command lines, and configurations in YAML: the typed configuration has what was written, and survives config.yaml."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hypothesis import strategies as st

from nemo_amft.config import override, rules, typed
from nemo_amft.config.idle import idle
from nemo_amft.config.load import load
from nemo_amft.config.schema import Config
from nemo_amft.config.validate import MASK, resolved, validate
from nemo_amft.planning import batch_table
from nemo_amft.types import UserError
from tests.fuzz.kinds import Kind, expect
from tests.fuzz.noise import TEXTS, spoilt

NAMES = ("quickstart", "amft_math", "smollm2_gsm8k", "general_points_text", "virl_text")


@functools.cache
def _types() -> dict[str, Any]:
    """Key -> type, of the schema's leaves."""
    found: dict[str, Any] = {}

    def add(cls: type, section: str) -> None:
        for name, hint in get_type_hints(cls, include_extras=True).items():
            key = typed.join(section, name)
            if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
                add(hint, key)
            elif hint is not Any:
                found[key] = hint

    add(Config, "")
    return found


PLUGIN_KEYS = (
    "method._target_", "method.rl.advantage", "method.rl.clip_ratio", "method.rl.updates_per_rollout_batch", "method.kl_coef",
    "controller.mu_init", "controller.meta_every", "controller.meta_gradient.val_samples", "controller.eta_mu", "controller.mu",
    "task.worked_steps", "task.modulus", "task.num_train", "task.thinking", "task.grader", "task.form",
)  # fmt: skip
KEYS = (*_types(), *PLUGIN_KEYS)
GRAMMAR = st.text(alphabet="abc019 =,:[]{}()'\"\\$~+-./@!#&;|<>*%\t\u00e9", max_size=14)
"""Signs that hydra's grammar, YAML or OmegaConf takes for more than letters."""


@dataclass(frozen=True)
class Line:
    """Arguments, and what some keys must come to if they are accepted."""

    arguments: tuple[str, ...]
    expected: tuple[tuple[str, Any], ...] = ()


def _written(hint: Any) -> st.SearchStrategy[tuple[str, Any]] | None:
    """(text, value) of a type, for a type whose values can be written on a command line; None for another."""
    origin = get_origin(hint)
    if origin is Annotated:
        return None  # a path: ~ is another matter (tests/unit/test_command_line.py)
    if origin is Literal:
        return st.sampled_from([(str(option), option) for option in get_args(hint)])
    if origin in (Union, types.UnionType):
        inner = [found for member in get_args(hint) if (found := _written(member)) is not None]
        null = st.just(("null", None)) if type(None) in get_args(hint) else st.nothing()
        return st.one_of(null, *inner) if len(inner) == 1 else None
    if hint is bool:
        return st.sampled_from([("true", True), ("false", False), ("True", True)])
    if hint is int:
        numbers = st.integers(-3, 40) | st.sampled_from((2**31, 10**12, 128, 256, 4096))
        return numbers.map(lambda number: (str(number), number))
    if hint is float:
        numbers = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.sampled_from((0.0, 1e-6, 0.5, 1.0, 1e-5))
        return numbers.map(lambda number: (repr(number), number))
    return None


@st.composite
def _override(draw: st.DrawFn) -> tuple[str, tuple[tuple[str, Any], ...]]:
    form = draw(st.sampled_from(("typed",) * 9 + ("text", "grammar", "group", "any key", "loose")))
    if form == "typed":
        key = draw(st.sampled_from(KEYS))
        written = _written(_types().get(key))
        if written is not None:
            text, value = draw(written)
            return f"{key}={text}", ((key, value),)
        return f"{key}={draw(GRAMMAR)}", ()
    if form == "text":
        text = draw(GRAMMAR | TEXTS)
        return override.argument("exp_manager.name", text), (("exp_manager.name", text),)
    if form == "grammar":
        sign = draw(st.sampled_from(("", "", "+", "++", "~")))
        return f"{sign}{draw(st.sampled_from(KEYS))}={draw(GRAMMAR)}", ()
    if form == "group":
        groups = ("method", "controller", "task", "model", "optim", "rollout", "benchmarks", "hydra", "hydra/job_logging")
        options = ("amft", "grpo", "sft", "paper", "fixed", "responsive", "math", "arithmetic", "virl", "scratch", "vllm",
                   "megatron", "constant", "nothing", "", "???", "null", "{a: 1}")  # fmt: skip
        return f"{draw(st.sampled_from(groups))}={draw(st.sampled_from(options))}", ()
    if form == "any key":
        return f"{draw(st.sampled_from(KEYS))[:-1]}{draw(GRAMMAR)}={draw(GRAMMAR)}", ()
    return draw(GRAMMAR | st.sampled_from(("--multirun", "--resolve", "--config-dir", "-x", "=", "~", "hydra.run.dir=x"))), ()


@st.composite
def _lines(draw: st.DrawFn) -> Line:
    found = draw(st.lists(_override(), min_size=1, max_size=3))
    expected: dict[str, Any] = {}
    for text, values in found:
        expected.pop(text.lstrip("+~").partition("=")[0], None)  # of a key given twice the last counts
        expected |= dict(values)
    sections = {text.lstrip("+~").partition("=")[0] for text, values in found if not values}
    expected = {key: value for key, value in expected.items() if not any(key.startswith(s) for s in sections)}
    return Line(("--config-name", draw(st.sampled_from(NAMES)), *(text for text, _ in found)), tuple(expected.items()))


def check_config(config: Config) -> None:
    """What holds of every typed configuration."""
    again = yaml.safe_load(yaml.safe_dump(resolved(config), sort_keys=False))
    if MASK not in str(again):
        expect(validate(again) == config, "config.yaml reads back as another configuration")
    broken = list(rules.violations(config, on_this_machine=False))
    expect(all(line.strip() and "\n" not in line for line in broken), f"no line: {broken}")
    list(idle(config, list(_types())))
    if not broken:
        expect(all("\n" not in value for _, value in batch_table(config)), "a row of the batch table has several lines")
    for line in broken:
        raise UserError(line)


def _check_line(line: Line) -> None:
    with _silent():
        config = load(list(line.arguments), check=False)
    for key, value in line.expected:
        found = rules.lookup(config, key)
        same = found == value or (isinstance(found, float) and isinstance(value, float) and math.isclose(found, value))
        expect(same, f"{key}: found {found!r}, written {value!r}")
    check_config(config)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@functools.cache
def _composed(name: str) -> dict[str, Any]:
    """A configuration as hydra composes it, in plain data."""
    with _silent():
        return resolved(load(["--config-name", name, f"data.train={_problems()}"], check=False))


@functools.cache
def _problems() -> Path:
    """A file that the configurations without one may name."""
    file = Path(tempfile.mkdtemp(prefix="fuzz-")) / "problems.jsonl"
    file.write_text('{"problem": "1+1=", "answer": "2", "solution": "2"}\n')
    return file


_mappings = st.sampled_from(NAMES).flatmap(lambda name: spoilt(_composed(name), most=4))


def _check_mapping(values: Any) -> None:
    if not isinstance(values, dict):
        values = {"method": values}
    check_config(validate(values))


_yaml = st.text(alphabet="ab01 :-[]{}\n\t#&*!|>'\"%@`?,$~é", max_size=60).map(lambda text: text.encode()) | (
    st.sampled_from(NAMES).flatmap(lambda name: spoilt(_composed(name), most=3).map(lambda v: _dump(v)))
)


def _dump(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", errors="surrogatepass")
    except yaml.YAMLError:
        return b"a: [1"


def _check_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _silent():
        (Path(folder) / "mine.yaml").write_bytes(content)
        check_config(load(["--config-path", folder, "--config-name", "mine"], check=False))


def _check_argument(pair: tuple[str, str]) -> None:
    """Quotes that the program tells a user to write keep the text as it is."""
    key, text = pair
    found = override.parse(f"++{key}={override.quoted(text)}").value()
    expect(found == text, f"{text!r} in quotes is read as {found!r}")


KINDS = (
    Kind("command lines", _lines(), _check_line, round=50),
    Kind("quoted overrides", st.tuples(st.just("data.train"), GRAMMAR | TEXTS), _check_argument, round=300),
    Kind("configurations", _mappings, _check_mapping, round=200),
    Kind("configuration files", _yaml, _check_file, round=30),
)  # fmt: skip
