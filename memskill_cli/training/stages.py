"""Stages: the bank as it was between two designer cycles, with the reward it earned (section 7 of the method)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from memskill_cli import files
from memskill_cli.errors import RunError
from memskill_cli.skills.bank import SkillBank

FORMAT = 1
TAIL = 0.25
"""A stage is judged by this last part of its inner epochs, when the controller has settled."""


@dataclass(frozen=True)
class Stage:
    """``stages/stage-NNN.json``: a bank, what it earned, and the change that led to it.

    ``reward`` and ``kept`` are None until the stage has been judged. ``change`` is empty if nothing was changed;
    ``rationale`` says why it was, or why not; ``parent`` is the stage it was made from; ``checkpoint`` the one that its
    reward was measured with.
    """

    number: int
    bank: SkillBank
    reward: float | None = None
    is_best: bool = False
    checkpoint: int | None = None
    change: dict[str, Any] = field(default_factory=dict)
    rationale: str = ""
    kept: bool | None = None
    parent: int | None = None


def stage_reward(rewards: Sequence[float]) -> float:
    """Mean of the last quarter (at least one) of a stage's inner-epoch rewards."""
    tail = rewards[-math.ceil(len(rewards) * TAIL) :]
    return sum(tail) / len(tail)


def path_of(folder: Path, number: int) -> Path:
    return folder / f"stage-{number:03d}.json"


def write(folder: Path, stage: Stage) -> None:
    files.write_json(
        path_of(folder, stage.number),
        {
            "format": FORMAT,
            "stage": stage.number,
            "reward": stage.reward,
            "is_best": stage.is_best,
            "checkpoint": stage.checkpoint,
            "change": stage.change,
            "rationale": stage.rationale,
            "kept": stage.kept,
            "parent": stage.parent,
            "bank": stage.bank.to_dict(),
        },
    )


def read(file: Path) -> Stage:
    """One stage file. Raises RunError if it is damaged or of a newer format."""
    try:
        text = file.read_text("utf-8")
        row = orjson.loads(text)
        if row["format"] > FORMAT:
            raise RunError(f"{file}: format {row['format']} is newer than this memskill reads ({FORMAT})")
        bank = SkillBank.from_json(text, str(file), at=("bank",))
        names = ("reward", "is_best", "checkpoint", "change", "rationale", "kept", "parent")
        return Stage(number=row["stage"], bank=bank, **{name: row[name] for name in names})
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not a stage file: {error!r}") from None


def read_all(folder: Path) -> list[Stage]:
    """Every stage, in order."""
    return [read(file) for file in sorted(folder.glob("stage-*.json"))]


def best(stages: Sequence[Stage]) -> Stage | None:
    """The stage marked as the best, None before one has been judged.

    A crash between two stage files can leave two marked: the later one was marked last.
    """
    return next((stage for stage in reversed(stages) if stage.is_best), None)


def pending(stages: Sequence[Stage], after: int) -> Stage | None:
    """The stage that was proposed after stage ``after`` and is not judged yet."""
    return next((s for s in reversed(stages) if s.kept is None and s.reward is None and s.number > after), None)
