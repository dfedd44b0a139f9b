"""The parts of ``make mutants``: the rewriting of modules, and the list of mutants that may survive."""

from __future__ import annotations

import re

import pytest

from .listed import LISTED, Mutant, listed
from .prepare import prepared

SOURCE = '''
"""A module."""
import re
from functools import cache
from contextlib import contextmanager

LEAST = 0.2
NAME = re.compile(r"[a-z]+")
_MANY = ("a", "b")
SUM = LEAST + 1


@cache
def half(LEAST_of: float = LEAST) -> float:
    return LEAST_of * LEAST


class Known:
    LEAST = 5

    @property
    def many(self):
        return [x for x in _MANY if NAME.fullmatch(x)]

    @classmethod
    def least(cls):
        return cls.LEAST, dict(LEAST=LEAST), SUM, f"{LEAST}"


@contextmanager
def opened():
    yield LEAST
'''


def test_a_prepared_module_does_the_same() -> None:
    text = prepared(SOURCE)
    found: dict = {}
    exec(text, found)
    assert found["half"](2.0) == 0.4
    assert found["half"].cache_info().currsize == 1
    assert found["Known"]().many == ["a", "b"]
    assert found["Known"].least() == (5, {"LEAST": 0.2}, 1.2, "0.2")
    with found["opened"]() as value:
        assert value == 0.2
    assert "@" not in text.replace("@classmethod", ""), "mutmut skips decorated functions"
    assert "LEAST_of * 0.2" in text


def entries() -> list[tuple[Mutant, str]]:
    return list(listed(LISTED.read_text("utf-8")))


def test_every_mutant_that_may_survive_has_a_reason() -> None:
    text = LISTED.read_text("utf-8")
    assert len(entries()) == text.count("\n@@ ") > 0
    assert [mutant for mutant, reason in entries() if not reason] == []


@pytest.mark.parametrize("module", sorted({mutant.module for mutant, _ in entries()}))
def test_what_a_listed_mutant_changes_is_still_there(module: str) -> None:
    """If this fails, ``make mutants M=<module>`` shows which entries of docs/mutants.md to remove or to change."""
    source = prepared((LISTED.parents[1] / "memskill_cli" / f"{module}.py").read_text("utf-8"))
    lines = {re.sub(r"\s+", " ", line.strip()) for line in source.splitlines()}
    gone = [
        (mutant.function, line)
        for mutant, _ in entries()
        if mutant.module == module
        for line in mutant.change.splitlines()
        if line.startswith("- ") and re.sub(r"\s+", " ", line[2:].strip()) not in lines
    ]
    assert gone == []
