"""Stages: the bank as it was between two designer cycles, with the reward it earned (section 7 of the method)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """``stages/stage-NNN.json``. ``change`` led to this stage (empty for the first); ``kept`` is None until judged."""

    number: int
    bank: SkillBank
    reward: float | None
    is_best: bool
    checkpoint: int
    change: dict[str, Any]
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
    """The stage with the highest reward (the first of equals), None before one has ended."""
    ended = [stage for stage in stages if stage.reward is not None]
    return max(ended, key=lambda stage: stage.reward or 0.0, default=None)
