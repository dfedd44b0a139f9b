"""The mutants that may survive, read from docs/mutants.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LISTED = Path(__file__).parents[2] / "docs" / "mutants.md"
_SECTION = re.compile(r"^## (\S+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"(.*?)^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Mutant(NamedTuple):
    """A change of one function: the removed and the added lines, each with its - or +."""

    module: str
    function: str
    change: str


def listed(text: str) -> Iterator[tuple[Mutant, str]]:
    """The mutants in ``text``, each with the reason why it may survive.

    A section has the name of a module as its heading. In it, a reason is the text above a block of code, and the block
    lists mutants, each below a line ``@@ function``.
    """
    for module, section in _SECTION.findall(text):
        for reason, block in _REASON.findall(section):
            for entry in re.split(r"^@@ ", block, flags=re.MULTILINE)[1:]:
                function, _, change = entry.rstrip("\n").partition("\n")
                yield Mutant(module, function, change), " ".join(reason.split())
