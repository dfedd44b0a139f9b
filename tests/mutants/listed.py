"""The mutants that may survive, as docs/mutants.md lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LISTED = Path(__file__).parents[2] / "docs" / "mutants.md"
_SECTION = re.compile(r"^## (\S+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"(.*?)^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Mutant(NamedTuple):
    """A change of one function: the lines that it replaces and those that it puts there, each with its - or +."""

    module: str
    function: str
    change: str


def listed(text: str) -> Iterator[tuple[Mutant, str]]:
    """Mutants, each with the reason why it may survive.

    Below a heading with the name of a module, a reason is what stands above a block of code, and the block lists the
    mutants, each below a line ``@@ function``.
    """
    for module, section in _SECTION.findall(text):
        for reason, block in _REASON.findall(section):
            for entry in re.split(r"^@@ ", block, flags=re.MULTILINE)[1:]:
                function, _, change = entry.rstrip("\n").partition("\n")
                yield Mutant(module, function, change), " ".join(reason.split())
