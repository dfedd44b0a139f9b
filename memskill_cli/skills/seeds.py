"""The seed skills of a new bank.

The controller embeds a description, so it says for which spans the skill is useful. The executor reads a body, so it is
short and concrete enough for a model with 1.5 billion parameters.
"""

from __future__ import annotations

from memskill_cli.skills.bank import CAPACITY, SkillBank
from memskill_cli.skills.skill import Skill
from memskill_cli.types import Action

_INSERT = Skill(
    name="insert",
    description="Record facts that are new: the text tells of people, events, plans, dates, places, preferences or "
    "possessions that no stored memory mentions yet.",
    body="""\
## Purpose
Save each lasting new fact as a memory of its own, so that questions about it can be answered later without the text.

## When to use
- The text states something about a person's life, work, family, pets, health, plans, tastes or belongings.
- Something happened or will happen, and the text or its date line says when.
- None of the memories shown says it already.

## How to apply
1. Write one INSERT for each separate fact: one or two plain sentences.
2. Name the person; never write "he", "she", "they" or "I".
3. Turn "yesterday", "last Friday", "next month" into a date with the help of the date line.
4. Keep names, numbers, titles and places exactly as the text has them.

## Constraints
- Leave out greetings, thanks, small talk and anything that is only a guess.
- Do not store a fact twice.
- This skill writes ACTION: INSERT blocks.""",
    action=Action.INSERT,
    origin="seed",
)

_UPDATE = Skill(
    name="update",
    description="Correct or complete a stored memory: the text changes, contradicts or adds details to something that "
    "is remembered already.",
    body="""\
## Purpose
Keep an existing memory true and complete when the text says more about the same thing.

## When to use
- A memory shown is out of date: a new job, home, date, number, plan or opinion replaces the old one.
- A memory shown is right but vague, and the text gives the missing name, day, place or reason.

## How to apply
1. Find the one memory about the same person and the same matter, and give its index.
2. Write the whole memory anew: all that still holds in it, and the change.
3. If the old state may be asked about later, keep it: "Ana works at a bakery since May 2023; before that, at a bank."

## Constraints
- Only for a memory in the list, by its index. Never invent an index.
- Never drop a detail of the old memory that is still true.
- A different matter is not an update.
- This skill writes ACTION: UPDATE blocks.""",
    action=Action.UPDATE,
    origin="seed",
)

_DELETE = Skill(
    name="delete",
    description="Remove a stored memory that has become wrong or useless: the text says that it is not true, that the "
    "plan is cancelled, or another memory repeats it.",
    body="""\
## Purpose
Take away memories that would lead to a wrong answer.

## When to use
- The text says plainly that a memory shown is false or was a mistake.
- A plan in a memory shown has been called off and nothing of it is worth keeping.
- Two memories shown say the same: remove the one that says less.

## How to apply
1. Find the memory in the list and check that the text is about exactly this one.
2. Give its index.

## Constraints
- When in doubt, keep the memory. Being old is no reason; not being mentioned is no reason.
- If something new takes its place, it should be rewritten, not deleted.
- Each index at most once. Never invent an index.
- This skill writes ACTION: DELETE blocks.""",
    action=Action.DELETE,
    origin="seed",
)

_NOOP = Skill(
    name="noop",
    description="Leave the memory as it is: the text is small talk, greetings or repetition, and holds nothing that is "
    "worth remembering.",
    body="""\
## Purpose
Keep the memory free of clutter.

## When to use
- The text has only greetings, thanks, jokes, encouragement or other small talk.
- Every fact in it is in the memories shown already.

## How to apply
1. Look once more for a name, date, place, number, plan or preference that is not remembered yet.
2. If there is none, answer with the single line ACTION: NOOP.

## Constraints
- Never for a text with a new or changed fact.
- This skill writes ACTION: NOOP, alone.""",
    action=Action.NOOP,
    origin="seed",
)


def seed_bank(noop: bool = True, capacity: int = CAPACITY) -> SkillBank:
    """The bank of stage 0: insert, update, delete and (by default) noop."""
    return SkillBank([_INSERT, _UPDATE, _DELETE, *([_NOOP] if noop else [])], capacity=capacity)
