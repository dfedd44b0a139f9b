"""One action as the model wrote it, not validated. The readers of both reply formats (blocks, JSON) return it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from memskill_cli.types import Action

FENCE = re.compile(r"\s*(?:```|~~~)")
VERB = re.compile(r"[\s*_`\"'\[(<{]*(insert|update|delete|no[-_ ]?op|skip|none)(?![\w-])", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\s*(?:[/|,]|\bor\b)\s*(?:insert|update|delete|no[-_ ]?op)\b", re.IGNORECASE)
_MINUS = r"\-−–—"
_INDEX = re.compile(
    rf"[^\w{_MINUS}]{{0,8}}(?:memory|item|index)?[^\w{_MINUS}]{{0,8}}(-?\d{{1,9}})\W*(?:\(.*|[:{_MINUS}]\s.*)?",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(slots=True)
class Entry:
    """The fields of one action as the model wrote them. None: the field is missing."""

    action: str
    index: str | None = None
    memory: str | None = None

    @property
    def verb(self) -> Action | None:
        """The action type; None for an unknown type and for a list of types ("INSERT | UPDATE")."""
        return read_verb(self.action)

    @property
    def position(self) -> int | None:
        """The index as a number: 3 for "3", "[3]", "3.", "#3", "memory 3" or "3 (the flat)"; None for anything else."""
        found = _INDEX.fullmatch((self.index or "").strip())
        return int(found[1]) if found else None


def read_verb(text: str) -> Action | None:
    """The action type that ``text`` begins with (skip and none mean NOOP); None if there is none."""
    found = VERB.match(text)
    if found is None or _ALTERNATIVE.match(text, found.end()):
        return None
    word = found[1].lower()
    return Action(word) if word in ("insert", "update", "delete") else Action.NOOP
