"""The commands in docs/import.md are ones that the installed command takes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from ..test_readme import check, commands

TYPED = list(commands((Path(__file__).parents[2] / "docs" / "import.md").read_text("utf-8")))


@pytest.mark.parametrize("arguments", TYPED, ids=shlex.join)
def test_a_command_can_be_typed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEMSKILL_")]:
        monkeypatch.delenv(name)
    check(arguments)


def test_they_are_found() -> None:
    assert {arguments[0] for arguments in TYPED} >= {"import", "eval", "train", "prepare", "inspect-skills"}
