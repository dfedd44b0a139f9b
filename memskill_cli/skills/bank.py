"""The skill bank that controller, executor and designer share.

Skills are frozen, so :meth:`SkillBank.copy` is cheap and later changes do not affect a copy. The controller's indices
refer to ``skills`` in order of name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memskill_cli.config import digest
from memskill_cli.errors import SkillBankError
from memskill_cli.skills.schema import FORMAT, read_bank, read_text
from memskill_cli.skills.skill import Skill, SkillStats, check_skill
from memskill_cli.types import Action
from memskill_cli.utils.files import write_atomic

CAPACITY = 30
USAGE_ALPHA = 0.1
"""Weight of one step in the usage EMA."""


class SkillBank:
    """At most ``capacity`` skills with distinct names, their stage, and the names of the new skills."""

    def __init__(
        self, skills: Iterable[Skill] = (), *, stage: int = 0, capacity: int = CAPACITY, new: Iterable[str] = ()
    ) -> None:
        self._skills: dict[str, Skill] = {}
        self.stage = stage
        self.capacity = capacity
        for skill in skills:
            if len(self) == capacity:
                raise SkillBankError(f"a skill bank of capacity {capacity} cannot hold {skill.name} as well")
            self.add(skill)
        self.new: frozenset[str] = frozenset()
        self.mark_new(new)

    @property
    def skills(self) -> tuple[Skill, ...]:
        """All skills in order of name; :class:`~memskill_cli.types.SkillSelection` has indices into this tuple."""
        return tuple(self._skills[name] for name in self.names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._skills))

    def __len__(self) -> int:
        return len(self._skills)

    def __contains__(self, name: object) -> bool:
        return name in self._skills

    def __getitem__(self, name: str) -> Skill:
        try:
            return self._skills[name]
        except KeyError:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]}?" if near else "there are: " + ", ".join(self.names)
            raise SkillBankError(f"no skill is called {name}", hint=hint) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SkillBank) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # a bank changes

    def add(self, skill: Skill) -> str | None:
        """Add a skill. Returns the name of the evicted skill if the bank was full, else None.

        Evicted is the used skill with the lowest mean reward, or, if none was used, the least used one. Ties: lowest
        usage EMA, then lowest ``created_stage``, then name. Raises SkillBankError for a taken name or an invalid skill.
        """
        check_skill(skill)
        if skill.name in self._skills:
            raise SkillBankError(f"a skill is already called {skill.name}", hint="refine it, or choose another name")
        replaced = self._worst() if len(self) >= self.capacity else None
        if replaced is not None:
            del self._skills[replaced]
            self.new -= {replaced}
        self._skills[skill.name] = skill
        return replaced

    def _worst(self) -> str:
        used = [skill for skill in self._skills.values() if skill.stats.uses]
        worst = min(
            used or self._skills.values(),
            key=lambda s: (s.stats.mean_reward if used else 0.0, s.stats.usage_ema, s.created_stage, s.name),
        )
        return worst.name

    def refine(self, name: str, *, description: str | None = None, body: str | None = None, stage: int) -> None:
        """Change description and body of a skill. Raises SkillBankError for an unknown name or an invalid text."""
        old = self[name]
        skill = replace(
            old,
            description=old.description if description is None else description,
            body=old.body if body is None else body,
            modified_stage=stage,
        )
        check_skill(skill)
        self._skills[name] = skill

    def record_batch(self, choices: Sequence[Sequence[int]], rewards: Sequence[float]) -> None:
        """Update the statistics with n steps: step i selected the skills ``choices[i]`` and got ``rewards[i]``.

        ``choices[i]`` are indices into ``skills``. The new usage EMA is φ(1 − (1−α)^n) + old·(1−α)^n, where φ is the
        frequency of the skill in the batch: the same as n single steps with usage φ.
        """
        if not choices:
            return
        decay = (1 - USAGE_ALPHA) ** len(choices)
        for index, skill in enumerate(self.skills):
            own_rewards = [float(reward) for chosen, reward in zip(choices, rewards, strict=True) if index in chosen]
            stats = skill.stats.recorded(own_rewards)
            ema = len(own_rewards) / len(choices) * (1 - decay) + stats.usage_ema * decay
            self._skills[skill.name] = replace(skill, stats=replace(stats, usage_ema=ema))

    def mark_new(self, names: Iterable[str]) -> None:
        """Mark exactly ``names`` as new, for the controller's exploration. Raises SkillBankError for unknown names."""
        self.new = frozenset(self[name].name for name in names)

    def clear_new(self) -> None:
        self.new = frozenset()

    def copy(self) -> SkillBank:
        return SkillBank(self._skills.values(), stage=self.stage, capacity=self.capacity, new=self.new)

    def digest(self) -> str:
        """A digest (12 hex digits) of names, descriptions, bodies and actions, without statistics."""
        return digest([[s.name, s.description, s.body, s.action.value] for s in self.skills])

    def to_dict(self) -> dict[str, Any]:
        """The content of ``skill_bank.json``."""
        return {
            "format": FORMAT,
            "stage": self.stage,
            "capacity": self.capacity,
            "skills": [{**asdict(skill), "action": skill.action.value} for skill in self.skills],
            "new": sorted(self.new),
        }

    def to_json(self) -> str:
        import orjson

        return orjson.dumps(self.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()

    @classmethod
    def from_json(cls, text: str, where: str, at: tuple[str | int, ...] = ()) -> SkillBank:
        """The bank in the JSON ``text``, at the path ``at`` inside it (default: the whole text).

        Raises SkillBankError ("<where>:<line>: <reason>") for invalid JSON, a schema error or an inconsistent value.
        """
        data = read_bank(text, where, at)
        skills = [_skill(item) for item in data["skills"]]
        return cls(skills, stage=data["stage"], capacity=data["capacity"], new=data["new"])

    @classmethod
    def load(cls, path: Path) -> SkillBank:
        """Read a bank file. Raises SkillBankError if the file is missing, or invalid (with the line)."""
        return cls.from_json(read_text(path), str(path))

    def save(self, path: Path) -> None:
        write_atomic(path, self.to_json())


def _skill(item: dict[str, Any]) -> Skill:
    stats = {**item["stats"], "recent_rewards": tuple(map(float, item["stats"]["recent_rewards"]))}
    return Skill(**{**item, "action": Action(item["action"]), "stats": SkillStats(**stats)})
