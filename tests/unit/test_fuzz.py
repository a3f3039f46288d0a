"""tests/fuzz in small: each kind of input, a few times, and what the harness calls a fault."""

from __future__ import annotations

import time

import pytest
from hypothesis import strategies as st

from nemo_amft.types import UserError
from tests.fuzz.kinds import Fault, Kind, outcome
from tests.fuzz.worker import kinds, play

POOLS = "in the pool"
"""Of kinds that start processes of their own."""


@pytest.mark.parametrize("kind", [kind for kind in kinds() if POOLS not in kind.name], ids=lambda kind: kind.name)
def test_a_few_inputs_of_each_kind_come_to_no_fault(kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    counts, fault = play(kind, seed=0, number=0, most=3)
    assert fault is None
    assert sum(counts.values()) == 3


def _kind(check, names=()) -> Kind:
    return Kind("a kind", st.integers(0, 100), check, lambda value: names, deadline_s=0.2)


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize(
    ("check", "found"),
    [
        (lambda value: 1 // 0, "ZeroDivisionError"),
        (lambda value: _raise(UserError("")), "no line"),
        (lambda value: _raise(UserError("x" * 3000)), "3000 characters"),
        (lambda value: _raise(UserError("something is wrong")), "names none"),
        (lambda value: time.sleep(60), "no end within 0.2 s"),
        (lambda value: _raise(BaseException("panic")), "panic"),  # as libraries in Rust raise it
    ],
)
def test_what_is_a_fault(check, found):
    with pytest.raises(Fault, match=found):
        outcome(_kind(check, ("file.json",)), 1)


def test_what_is_none():
    assert outcome(_kind(lambda value: None), 1) == "accepted"
    assert outcome(_kind(lambda value: _raise(UserError("file.json: found 7")), ("file.json",)), 1) == "refused"


def test_the_same_round_has_the_same_inputs_and_its_fault_is_the_smallest():
    seen: list[list[int]] = [[], [], []]

    def round_of(number: int, into: list[int]):
        def check(value: int) -> None:
            into.append(value)
            assert value < 50

        return play(_kind(check), 1, number, 30)[1]

    faults = [round_of(number, into) for number, into in zip((0, 0, 1), seen, strict=True)]
    assert seen[0] == seen[1] != seen[2]
    assert {fault["example"] for fault in faults if fault} == {"50"}
