"""One skill: its description (for the controller), its body (for the executor), and its statistics."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from memskill_cli.errors import SkillBankError
from memskill_cli.types import Action

Origin = Literal["seed", "designer", "import"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Pattern of a valid name (full match)."""
MAX_DESCRIPTION = 1024
"""Most characters of a description: the limit of the ``SKILL.md`` convention."""
MAX_BODY = 20_000
"""Most bytes of a body, in UTF-8."""
RECENT = 20
"""Most rewards in ``SkillStats.recent_rewards``."""


@dataclass(frozen=True, slots=True)
class SkillStats:
    """Usage of a skill. Each step that selected the skill adds the reward of its episode once."""

    uses: int = 0
    mean_reward: float = 0.0
    recent_rewards: tuple[float, ...] = ()  # oldest first
    usage_ema: float = 0.0  # share of recent steps that selected it

    def recorded(self, rewards: list[float]) -> SkillStats:
        """The statistics after one more use per reward. The usage EMA does not change."""
        uses = self.uses + len(rewards)
        if not rewards:
            return self
        mean = self.mean_reward + math.fsum(reward - self.mean_reward for reward in rewards) / uses
        return SkillStats(uses, mean, (*self.recent_rewards, *rewards)[-RECENT:], self.usage_ema)


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill of the bank. ``body`` is Markdown: purpose, when to use, how to apply, constraints."""

    name: str
    description: str
    body: str
    action: Action
    origin: Origin
    created_stage: int = 0
    modified_stage: int = 0
    stats: SkillStats = field(default_factory=SkillStats)


def check_skill(skill: Skill) -> None:
    """Raise SkillBankError if a name or text is invalid (see :func:`faults`)."""
    for where, reason in faults(skill.name, skill.description, skill.body):
        raise SkillBankError(f"skill {skill.name!r}: {where} {reason}")


def faults(name: str, description: str, body: str) -> list[tuple[str, str]]:
    """Invalid texts of a skill as (field, reason) pairs, in the order of the fields."""
    found = []
    if not NAME.fullmatch(name):
        found.append(("name", f"is {name!r}, expected 1 to 64 of a-z 0-9 _ - that begin with a letter or digit"))
    for where, text in (("description", description), ("body", body)):
        if not text.strip():
            found.append((where, "is empty"))
        elif _has_lone_surrogate(text):
            found.append((where, "has half a character (a lone surrogate escape)"))
    if len(description) > MAX_DESCRIPTION:
        found.append(("description", f"has {len(description)} characters, at most {MAX_DESCRIPTION} are allowed"))
    if (size := len(body.encode(errors="surrogatepass"))) > MAX_BODY:
        found.append(("body", f"has {size} bytes, at most {MAX_BODY} are allowed"))
    return found


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)
