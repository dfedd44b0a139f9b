"""Read skills of the published code, from its checkpoints and from its folders of Markdown files.

The published code calls a skill an *operation*: ``instruction_template`` is the body, ``update_type`` the action and
``meta_info`` the statistics. Its folders have one file per skill, ``<name>.md``, in the heading format that
:mod:`memskill_cli.skills.markdown` reads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memskill_cli.errors import SkillBankError
from memskill_cli.skills.bank import CAPACITY, SkillBank
from memskill_cli.skills.markdown import MAX_FILE, convention_name, from_markdown, import_bank
from memskill_cli.skills.schema import read_text
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import MAX_DESCRIPTION, NAME, RECENT, Skill, SkillStats
from memskill_cli.types import Action

SEEDS = "seeds"
"""Name of the seed skills, accepted in place of a path."""
_PLACEHOLDERS = ("{session_text}", "{retrieved_memories}")
_MAX_COUNT = 10**12
"""Largest number of uses, and largest capacity, that the schema of a bank file allows."""


def starting_bank(source: str, *, noop: bool = False) -> SkillBank:
    """The skills of ``source``, without statistics: the word ``seeds``, a bank's JSON file, or Markdown files.

    A skill in the heading format is named after its file, which keeps the names of the published folders (``_``
    becomes ``-``). For other files see :func:`~memskill_cli.skills.markdown.import_bank`. Raises SkillBankError.
    """
    if source == SEEDS:
        return seed_bank(noop=noop)
    path = Path(source)
    files = _markdown_files(path)
    if not any(_is_headed(file) for file in files):
        return import_bank(path)
    return _bank(map(_from_file, files), [str(file) for file in files])


def bank_of(
    operations: Sequence[Mapping[str, Any]], capacity: Any, new: Iterable[str], notice: Callable[[str], None]
) -> SkillBank:
    """The bank of a checkpoint: its skills with their statistics, its capacity, and the new skills.

    Invalid names are changed and long descriptions are truncated, each with a call of ``notice``. Raises
    SkillBankError, which names the skill, for other invalid values.
    """
    names = _names([_text(one, "name", str(number)) for number, one in enumerate(operations, 1)], notice)
    skills = [_skill(name, one, notice) for name, one in zip(names.values(), operations, strict=True)]
    bank = _bank(skills, [skill.name for skill in skills], _capacity(capacity, len(skills), notice))
    bank.mark_new(names[name] for name in new if name in names)
    if unknown := sorted(set(new) - names.keys()):
        notice(f"marked as new, but there are no such skills (ignored): {', '.join(unknown)}")
    return bank


def _names(given: Sequence[str], notice: Callable[[str], None]) -> dict[str, str]:
    """A valid, distinct name for each of the ``given`` ones; valid names are kept."""
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise SkillBankError(f"two skills are called {twice!r}")
    taken = {name for name in given if NAME.fullmatch(name)}
    names: dict[str, str] = {}
    for name in given:
        names[name] = name if name in taken else _free_name(name, taken)
        if names[name] != name:
            notice(f"skill {name!r} is renamed to {names[name]}")
        taken.add(names[name])
    return names


def _free_name(name: str, taken: set[str]) -> str:
    stem = convention_name(name)[:56].rstrip("-") or "skill"
    tries = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
    return next(free for free in tries if free not in taken)


def _skill(name: str, operation: Mapping[str, Any], notice: Callable[[str], None]) -> Skill:
    action = _text(operation, "action", name).strip().lower()
    if action not in tuple(Action):
        raise SkillBankError(f"skill {name}: its update_type is {action[:60]!r}, expected one of {', '.join(Action)}")
    body = _text(operation, "body", name).strip()
    if found := [text for text in _PLACEHOLDERS if text in body]:
        notice(f"the body of skill {name} has {' and '.join(found)}; memskill does not fill in placeholders")
    description = _truncate(_text(operation, "description", name).strip(), name, notice)
    return Skill(name, description, body, Action(action), "import", stats=_statistics(name, operation))


def _text(operation: Mapping[str, Any], field: str, name: str) -> str:
    value = operation[field]
    if not isinstance(value, str):
        raise SkillBankError(f"skill {name}: its {field} is missing or no text")
    return value


def _truncate(description: str, name: str, notice: Callable[[str], None]) -> str:
    """``description``, truncated at the end of a word if it is too long."""
    if len(description) <= MAX_DESCRIPTION:
        return description
    notice(f"the description of skill {name} has {len(description)} characters; truncated to {MAX_DESCRIPTION}")
    head = description[:MAX_DESCRIPTION]
    return head.rpartition(" ")[0] if " " in head and description[MAX_DESCRIPTION] != " " else head.rstrip()


def _statistics(name: str, operation: Mapping[str, Any]) -> SkillStats:
    """The usage statistics; missing values are 0. Raises SkillBankError for an invalid number."""
    uses, mean = operation["usage_count"] or 0, operation["avg_reward"] or 0.0
    recent, ema = operation["recent_rewards"] or [], operation["recent_usage_ema"] or 0.0
    numbers = [uses, mean, ema, *(recent if isinstance(recent, list) else [math.nan])]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise SkillBankError(f"skill {name}: its statistics are not finite numbers")
    if uses != int(uses) or not 0 <= uses <= _MAX_COUNT or not -1e-6 <= ema <= 1 + 1e-6:
        raise SkillBankError(f"skill {name}: usage_count {uses} or recent_usage_ema {ema} is out of range")
    rewards = tuple(map(float, recent[-RECENT:]))
    return SkillStats(int(uses), float(mean), rewards, min(1.0, max(0.0, float(ema))))


def _capacity(given: Any, skills: int, notice: Callable[[str], None]) -> int:
    if type(given) is not int or not 1 <= given <= _MAX_COUNT:
        return max(CAPACITY, skills)
    if given < skills:
        notice(f"the bank has {skills} skills but a capacity of {given}: capacity raised to {skills}")
    return max(given, skills)


def _bank(skills: Iterable[Skill], sources: Sequence[str], capacity: int = CAPACITY) -> SkillBank:
    """A bank of ``skills``; an error message begins with the source (file or name) of the invalid skill."""
    bank = SkillBank(capacity=capacity)
    for skill, source in zip(skills, sources, strict=True):
        if len(bank) == capacity:
            raise SkillBankError(f"{source}: one skill more than the bank can hold ({capacity})")
        try:
            bank.add(skill)
        except SkillBankError as error:
            raise SkillBankError(f"{source}: {error.message}", hint=error.hint) from None
    if not len(bank):
        raise SkillBankError("there are no skills")
    return bank


def _markdown_files(path: Path) -> list[Path]:
    """``path`` if it is a Markdown file, else the files ``<name>.md`` and ``<name>/SKILL.md`` in it, sorted."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".md" else []
    found = [file for file in (*path.glob("*.md"), *path.glob("*/SKILL.md")) if file.is_file()]
    hidden = [file for file in found if file.relative_to(path).as_posix().startswith(".")]
    return sorted(file for file in found if file.name.lower() != "readme.md" and file not in hidden)


def _is_headed(file: Path) -> bool:
    """Whether ``file`` is in the heading format, which has no front matter."""
    return not read_text(file, MAX_FILE).removeprefix("\ufeff").startswith("---")


def _from_file(file: Path) -> Skill:
    skill = from_markdown(read_text(file, MAX_FILE), str(file))
    name = (
        convention_name(file.parent.name if file.name == "SKILL.md" else file.stem) if _is_headed(file) else skill.name
    )
    return dataclasses.replace(skill, name=name, origin="import")
