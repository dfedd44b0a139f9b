"""Stages: the bank as it was between two designer cycles, with the reward it earned (section 7 of the method)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.errors import RunError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.utils import files

FORMAT = 1
JUDGED_SHARE = 0.25
"""Last part of a stage's inner epochs that judges it, unless a run's settings say otherwise."""
_FIELDS: dict[str, Any] = {
    "stage": int,
    "reward": float | int | None,
    "is_best": bool,
    "checkpoint": int | None,
    "change": dict,
    "rationale": str,
    "kept": bool | None,
    "parent": int | None,
}


@dataclass(frozen=True)
class Stage:
    """``stages/stage-NNN.json``: a bank, what it earned, and the change that led to it.

    ``reward`` and ``kept`` are None until the stage has been judged; ``kept`` says whether it beat every one before it.
    ``change`` is empty if nothing was changed;
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

    @property
    def outcome(self) -> str:
        """What became of the stage, in words. A stage without a change that earned no more has nothing to roll back."""
        if self.is_best:
            return "best"
        if self.kept is None:
            return "not judged"
        if self.kept:
            return "kept"
        return "rolled back" if self.change else "no gain"

    @property
    def judged(self) -> bool:
        """Whether a training or an evaluation has judged it."""
        return self.reward is not None or self.kept is not None


def stage_reward(rewards: Sequence[float], share: float = JUDGED_SHARE) -> float:
    """Mean of the last ``share`` (at least one) of a stage's inner-epoch rewards, when the controller has settled."""
    tail = rewards[-math.ceil(len(rewards) * share) :]
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
        content = file.read_bytes()
        row = orjson.loads(content)
        if row["format"] > FORMAT:
            message = f"{file}: format {row['format']} is newer than this memskill reads ({FORMAT})"
            raise RunError(message, hint="pip install -U memskill")
        for name, kinds in _FIELDS.items():
            if not isinstance(row[name], kinds):
                raise TypeError(f"{name} is {row[name]!r}")
        if path_of(file.parent, row["stage"]).name != file.name:
            raise ValueError(f"it is stage {row['stage']}")
        bank = SkillBank.from_json(content.decode(), str(file), at=("bank",))
        return Stage(number=row["stage"], bank=bank, **{name: row[name] for name in _FIELDS if name != "stage"})
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not a stage file: {error}") from None


def read_all(folder: Path) -> list[Stage]:
    """Every stage, in order."""
    return [read(file) for file in sorted(folder.glob("stage-*.json"))]


def best(stages: Sequence[Stage]) -> Stage | None:
    """The stage marked as the best, None before one has been judged.

    A crash between two stage files can leave two marked: the later one was marked last.
    """
    return next((stage for stage in reversed(stages) if stage.is_best), None)


def marked(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages, with only that one marked as the best which won last: it earned more than every one before it,
    or, judged by an evaluation, was kept (and not because it changed nothing)."""
    champion, top = None, -math.inf
    for stage in stages:
        if stage.kept and stage.change if stage.reward is None else stage.reward > top:
            champion, top = stage.number, top if stage.reward is None else stage.reward
    return [replace(stage, is_best=stage.number == champion) for stage in stages]


def pending(stages: Sequence[Stage], after: int) -> Stage | None:
    """The first stage that was proposed after stage ``after`` and is not judged yet."""
    return next((stage for stage in stages if not stage.judged and stage.number > after), None)
