"""Options of ``prepare`` for conversations of your own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from memskill_cli.datasets.importers import AUTO as AUTO
from memskill_cli.errors import UsageError

SPLIT_BY = ("user", "question", "time")
DEFAULT_ROLES = ("user", "assistant")
KNOWN_ROLES = (*DEFAULT_ROLES, "system", "developer", "tool", "function")
"""Roles that files may have without being named by ``--roles``; those that are not kept are counted."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class ReadOptions:
    """How conversations are read and split."""

    format: str = AUTO
    """The name of an importer, or ``auto``."""
    questions: Path | None = None
    """A file of questions; None: ``questions.jsonl`` of a folder, if it is there."""
    roles: tuple[str, ...] = DEFAULT_ROLES
    """The roles whose messages are kept."""
    split_by: str = ""
    """One of :data:`SPLIT_BY`; "": by user, or by question if there are fewer than five users with questions."""
    redact: bool = False
    """Whether e-mail addresses, phone numbers, card numbers and keys are replaced."""

    def __post_init__(self) -> None:
        if self.split_by and self.split_by not in SPLIT_BY:
            raise UsageError(f"--split-by {self.split_by}: expected {', '.join(SPLIT_BY)}", hint="--split-by user")
        if not self.roles:
            raise UsageError("--roles: no role is named", hint=f"--roles {','.join(DEFAULT_ROLES)}")

    def flags(self) -> list[str]:
        """The same options for the command line."""
        flags = ["--questions", str(self.questions)] if self.questions else []
        flags += ["--format", self.format] if self.format != AUTO else []
        flags += ["--roles", ",".join(self.roles)] if self.roles != DEFAULT_ROLES else []
        flags += ["--split-by", self.split_by] if self.split_by else []
        return flags + (["--redact"] if self.redact else [])


def check_name(name: str) -> None:
    """Raise UsageError if ``name`` cannot be the name of a dataset of one's own."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--dataset {name}: a name has letters, digits, - and _ (at most 64, not beginning with -)",
            hint="for example: --dataset support",
        )
