"""Differences between two skill banks."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill


@dataclass(frozen=True, slots=True)
class SkillChange:
    """The difference of one skill between two banks; ``old`` or ``new`` is None if only one bank has it."""

    name: str
    old: Skill | None
    new: Skill | None

    @property
    def kind(self) -> Literal["added", "removed", "refined"]:
        if self.old is None:
            return "added"
        return "removed" if self.new is None else "refined"

    def lines(self) -> list[str]:
        """A unified diff of action, description and body."""
        old, new = (_as_lines(skill) for skill in (self.old, self.new))
        return list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]


def diff_banks(old: SkillBank, new: SkillBank) -> list[SkillChange]:
    """Skills whose text or action differs, in order of name. Statistics are not compared."""
    before, after = ({skill.name: skill for skill in bank.skills} for bank in (old, new))
    changes = [SkillChange(name, before.get(name), after.get(name)) for name in sorted(before | after)]
    return [change for change in changes if _as_lines(change.old) != _as_lines(change.new)]


def changes_by_kind(old: SkillBank, new: SkillBank) -> dict[str, list[str]]:
    """Names of the skills added, refined and removed."""
    kinds: dict[str, list[str]] = {"added": [], "refined": [], "removed": []}
    for change in diff_banks(old, new):
        kinds[change.kind].append(change.name)
    return kinds


def _as_lines(skill: Skill | None) -> list[str]:
    """Action, description and body as lines for a diff."""
    if skill is None:
        return []
    return [f"action: {skill.action}", f"description: {skill.description}", *skill.body.splitlines()]
