"""Stages: snapshots of the bank between two designer cycles, with their rewards (section 7 of docs/method.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.errors import RunError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.utils import files

FORMAT = 1
JUDGED_SHARE = 0.25
"""Default share of a stage's inner epochs, counted from the end, whose mean reward is the stage reward."""
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
Scores = dict[str, float | None]
"""Scores of held-out questions by query id; None for an answer without a score."""


@dataclass(frozen=True)
class Gate:
    """The comparison of a change (challenger) with the best bank before it (champion) on held-out questions.

    ``queries`` is the number of questions that both have a score for, ``champion`` and ``challenger`` are their mean
    scores, ``difference`` is the mean of (challenger − champion), and ``ci95`` is its interval.
    """

    queries: int
    difference: float
    ci95: tuple[float, float]
    kept: bool
    champion: float
    challenger: float

    def describe(self) -> str:
        """One line for display and for the designer, with scores from 0 to 1."""
        low, high = self.ci95
        return (
            f"{self.queries} held-out questions: {self.challenger:.3f} with the change, {self.champion:.3f} without; "
            f"difference {self.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"
        )

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Gate:
        """Raises KeyError, TypeError or ValueError for a row that is not one of ``dataclasses.asdict``."""
        low, high = map(float, row["ci95"])
        if not isinstance(row["kept"], bool):
            raise TypeError(f"gate.kept is {row['kept']!r}")
        numbers = {name: float(row[name]) for name in ("difference", "champion", "challenger")}
        return cls(queries=int(row["queries"]), ci95=(low, high), kept=row["kept"], **numbers)


@dataclass(frozen=True)
class Stage:
    """``stages/stage-NNN.json``: a bank, its reward, and the change that led to it.

    ``reward`` and ``kept`` are None until the stage is judged; ``kept`` is True if it beat every earlier stage.
    ``change`` is empty if nothing was changed; ``rationale`` is the reason for the change or for its absence.
    ``parent`` is the number of the stage that was changed, ``checkpoint`` that of the checkpoint that was judged.
    ``gate`` is set if held-out questions judged the change. ``held_out`` has the scores of those questions with this
    stage's bank and checkpoint; None if it was not compared. ``opened`` is the bank at the start of a stage that was
    trained: without the statistics of this stage, for the case that its training is done again after a crash.
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
    gate: Gate | None = None
    held_out: Scores | None = None
    opened: SkillBank | None = None

    @property
    def outcome(self) -> str:
        """The outcome for display. "no gain": there was no improvement, and no change to roll back."""
        if self.is_best:
            return "best"
        if self.kept is None:
            return "not judged"
        if self.kept:
            return "kept"
        return "rolled back" if self.change else "no gain"

    @property
    def judged(self) -> bool:
        """Whether training or an evaluation has judged the stage."""
        return self.reward is not None or self.kept is not None


def stage_reward(rewards: Sequence[float], share: float = JUDGED_SHARE) -> float:
    """Mean of the last ``share`` of a stage's inner-epoch rewards (at least one).

    Earlier epochs are left out because the controller is still adapting to the new bank.
    """
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
            **({"gate": asdict(stage.gate)} if stage.gate else {}),
            **({"held_out": stage.held_out} if stage.held_out is not None else {}),
            "bank": stage.bank.to_dict(),
            **({"opened": stage.opened.to_dict()} if stage.opened else {}),
        },
    )


def read(file: Path) -> Stage:
    """One stage file. Raises RunError if it is damaged or of a newer format."""
    try:
        content = file.read_bytes()
        row = orjson.loads(content)
        if row["format"] > FORMAT:
            message = f"{file}: format {row['format']} is newer than this memskill supports ({FORMAT})"
            raise RunError(message, hint="pip install -U memskill")
        for name, kinds in _FIELDS.items():
            if not isinstance(row[name], kinds):
                raise TypeError(f"{name} is {row[name]!r}")
        if path_of(file.parent, row["stage"]).name != file.name:
            raise ValueError(f"it is stage {row['stage']}")
        gate = Gate.from_dict(row["gate"]) if row.get("gate") is not None else None
        bank = SkillBank.from_json(content.decode(), str(file), at=("bank",))
        opened = SkillBank.from_json(content.decode(), str(file), at=("opened",)) if row.get("opened") else None
        known = {name: row[name] for name in _FIELDS if name != "stage"}
        held_out = _held_out(row.get("held_out"))
        return Stage(number=row["stage"], bank=bank, gate=gate, held_out=held_out, opened=opened, **known)
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not a stage file: {error}") from None


def _held_out(scores: Any) -> Scores | None:
    if scores is None:
        return None
    if not isinstance(scores, dict) or not all(isinstance(score, float | int | None) for score in scores.values()):
        raise TypeError("held_out is not a table of scores")
    return scores


def read_all(folder: Path) -> list[Stage]:
    """All stages, in order of number. Raises RunError as :func:`read` does."""
    return [read(file) for file in sorted(folder.glob("stage-*.json"))]


def best(stages: Sequence[Stage]) -> Stage | None:
    """The stage marked as best; None before a stage has been judged.

    A crash between two writes can leave two marks; the later stage was marked last and is returned.
    """
    return next((stage for stage in reversed(stages) if stage.is_best), None)


def best_before(folder: Path, number: int) -> Stage | None:
    """The best of the stages before stage ``number``; None if none of them has been judged."""
    return best(mark_best([stage for stage in read_all(folder) if stage.number < number]))


def mark_best(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages, with only the last winner marked as best.

    A stage wins if its gate kept it; without a gate, if its reward is higher than that of the winner before it, or if
    an evaluation judged it (``reward`` is None) and kept its non-empty change.
    """
    best_number, best_reward = None, -math.inf
    for stage in stages:
        if _wins(stage, best_reward):
            best_number, best_reward = stage.number, best_reward if stage.reward is None else stage.reward
    return [replace(stage, is_best=stage.number == best_number) for stage in stages]


def _wins(stage: Stage, best_reward: float) -> bool:
    if stage.gate is not None:
        return stage.gate.kept
    return bool(stage.kept and stage.change) if stage.reward is None else stage.reward > best_reward


def first_unjudged(stages: Sequence[Stage], after: int) -> Stage | None:
    """The first stage with a number above ``after`` that is not judged yet; None if there is none."""
    return next((stage for stage in stages if not stage.judged and stage.number > after), None)
