"""The lineage of a run's skill bank: ``stages/stage-NNN.json``, and what changed between two banks."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memskill_cli.errors import RunError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """A snapshot: the bank, what it earned, and the change that led to it.

    ``reward`` and ``kept`` are None while the stage has not ended; ``parent`` is the stage it was made from.
    """

    number: int
    bank: SkillBank
    reward: float | None
    is_best: bool
    summary: str
    rationale: str
    kept: bool | None
    parent: int | None


@dataclass(frozen=True, slots=True)
class SkillChange:
    """How one skill differs between two banks; ``old`` or ``new`` is None if only one of them has it."""

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
        old, new = (_sheet(skill) for skill in (self.old, self.new))
        return list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]


def read_stages(run: Path) -> list[Stage]:
    """All stages of a run, oldest first. Raises RunError or SkillBankError for a broken file."""
    return [_read(file, number) for number, file in sorted(_files(run).items())]


def read_stage(run: Path, number: int) -> Stage:
    """One stage. Raises RunError if the run has no such stage."""
    files = _files(run)
    if number not in files:
        known = "it has " + ", ".join(map(str, sorted(files))) if files else "it has none yet"
        raise RunError(f"run {run.name} has no stage {number}", hint=known)
    return _read(files[number], number)


def diff_banks(old: SkillBank, new: SkillBank) -> list[SkillChange]:
    """What differs in words or action, in name order; statistics are no difference."""
    before, after = ({skill.name: skill for skill in bank.skills} for bank in (old, new))
    changes = [SkillChange(name, before.get(name), after.get(name)) for name in sorted(before | after)]
    return [change for change in changes if _sheet(change.old) != _sheet(change.new)]


def _files(run: Path) -> dict[int, Path]:
    found = ((re.fullmatch(r"stage-(\d+)\.json", file.name), file) for file in (run / "stages").glob("stage-*.json"))
    return {int(match[1]): file for match, file in found if match}


def _read(file: Path, number: int) -> Stage:
    text = file.read_text("utf-8")
    try:
        data = json.loads(text)
        if data["format"] > FORMAT:
            raise RunError(f"{file}: written in format {data['format']}, this memskill reads up to {FORMAT}")
        return Stage(
            number=number,
            bank=SkillBank.from_json(text, str(file), at=("bank",)),
            reward=data["reward"],
            is_best=data["is_best"],
            summary=_summary(data["change"]),
            rationale=data["rationale"] or "",
            kept=data["kept"],
            parent=data["parent"],
        )
    except json.JSONDecodeError as error:
        raise RunError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except (KeyError, TypeError) as error:
        raise RunError(f"{file}: not a stage file ({error} is missing or wrong)") from None


def _summary(change: dict[str, Any] | None) -> str:
    return str(change["summary"]) if change else ""


def _sheet(skill: Skill | None) -> list[str]:
    if skill is None:
        return []
    return [f"action: {skill.action}", f"description: {skill.description}", *skill.body.splitlines()]


def changes_by_kind(old: SkillBank, new: SkillBank) -> dict[str, list[str]]:
    """Names of the skills added, refined and removed."""
    kinds: dict[str, list[str]] = {"added": [], "refined": [], "removed": []}
    for change in diff_banks(old, new):
        kinds[change.kind].append(change.name)
    return kinds


def lineage(stages: list[Stage]) -> Iterator[tuple[Stage, dict[str, list[str]]]]:
    """Each stage with what it changed against its parent (nothing, if the parent is not there)."""
    by_number = {stage.number: stage for stage in stages}
    for stage in stages:
        parent = by_number.get(stage.parent) if stage.parent is not None else None
        yield stage, changes_by_kind(parent.bank if parent else stage.bank, stage.bank)
