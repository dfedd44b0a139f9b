"""Validate and apply the designer's changes of the skill bank (section 7 of docs/method.md)."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill, faults
from memskill_cli.types import Action

_KEYS = {
    "add": {"change", "name", "description", "body", "action", "why"},
    "refine": {"change", "name", "description", "body", "why"},
}
MAX_DRAFTS = 20
"""Most changes of one reply that are validated."""
MAX_WHY = 1000
"""Most characters of a reason; longer ones are truncated."""
_ADDABLE = (Action.INSERT, Action.UPDATE)
_PLACEHOLDER_WORDS = (
    "span chunk passage context conversation dialogue dialog transcript session history memory memories retrieved"
)
_PLACEHOLDER_WORDS += " input text content query question answer trajectory trajectories observation document documents"
_TEMPLATE_SYNTAX = re.compile(
    r"\{\{.{0,80}?\}\}|\{%.{0,80}?%\}|\$\{.{0,80}?\}|%\(\w{1,40}\)s|<%.{0,80}?%>|\[\[.{0,80}?\]\]|<<.{0,80}?>>"
)
_BRACKETS = re.compile(r"\{([\w .-]{1,60})\}|<([\w .-]{1,60})/?>|\[([A-Z][A-Z _-]{1,60}|[\w ]{1,50} here)\](?!\()")


@dataclass(frozen=True, slots=True)
class SkillEdit:
    """One skill added or refined. In a refinement, ``description`` or ``body`` is None if it does not change."""

    kind: Literal["add", "refine"]
    name: str
    description: str | None
    body: str | None
    action: Action | None  # None for a refinement: the skill keeps its action type
    why: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "change": self.kind,
            "name": self.name,
            "description": self.description,
            "body": self.body,
            "action": self.action.value if self.action else None,
            "why": self.why,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> SkillEdit:
        rest = {key: row[key] for key in ("name", "description", "body", "why")}
        return cls(kind=row["change"], action=Action(row["action"]) if row["action"] else None, **rest)


@dataclass(frozen=True, slots=True)
class FailedEdit:
    """Changes that were rolled back: ``reward`` of their stage, and the ``best`` stage reward before it.

    ``changes`` is empty for a cycle without a change; then ``summary`` is the reason.
    """

    stage: int
    summary: str
    changes: tuple[dict[str, Any], ...]  # as SkillEdit.to_dict
    reward: float | None
    best: float | None
    measured: str = ""
    """What held-out questions showed, if they judged the changes; the rewards are then not shown."""


def apply_edits(bank: SkillBank, changes: Sequence[SkillEdit], stage: int) -> SkillBank:
    """A copy of ``bank`` for ``stage`` with the ``changes``; changed skills are marked as new.

    Refinements are applied first: an addition to a full bank may evict a refined skill, and a refinement of an evicted
    skill would fail. Raises SkillBankError if a change does not fit the bank.
    """
    copy = bank.copy()
    copy.stage = stage
    for change in sorted(changes, key=lambda change: change.kind == "add"):
        if change.action is None:
            copy.refine(change.name, description=change.description, body=change.body, stage=stage)
        else:
            texts = change.description or "", change.body or ""
            copy.add(Skill(change.name, *texts, change.action, "designer", stage, stage))
    copy.mark_new(change.name for change in changes if change.name in copy)
    return copy


def validate_edits(
    bank: SkillBank, drafts: Sequence[Mapping[str, Any]], *, refine_only: bool = False
) -> tuple[list[SkillEdit], list[str]]:
    """The valid changes of a model's reply, in order, and a reason for each refused one.

    Of several changes of one skill only the first is valid; a reply may not refine a skill that it adds.
    """
    good: list[SkillEdit] = []
    refused = []
    for number, draft in enumerate(drafts[:MAX_DRAFTS], start=1):
        verdict = _validate(bank, draft, {_fold(change.name): change for change in good})
        if refine_only and isinstance(verdict, SkillEdit) and verdict.kind == "add":
            verdict = "no skill may be added here: refine a present one, or reply with an empty list"
        if isinstance(verdict, SkillEdit):
            good.append(verdict)
        else:
            label = " ".join(_text(draft, key)[:60] for key in ("change", "name"))
            refused.append(f"change {number} ({' '.join(label.split())}): {verdict}")
    if len(drafts) > MAX_DRAFTS:
        refused.append(f"{len(drafts) - MAX_DRAFTS} more changes were not looked at")
    return good, refused


def safe_name(text: str) -> str:
    """``text`` as an identifier: a–z, 0–9, ``_`` and ``-``, at most 64; "" if nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_-]+", "_", plain).strip("_-")[:64].rstrip("_-")


def placeholder(text: str) -> str | None:
    """The first template placeholder in ``text``, such as ``{span}``, ``{{memories}}`` or ``<text>``; None if none.

    Single brackets count only around a word for a part of the executor's prompt: "<city>" may describe the form of a
    memory.
    """
    if found := _TEMPLATE_SYNTAX.search(text):
        return found[0]
    for found in _BRACKETS.finditer(text):
        inner = next(filter(None, found.groups()))
        if not set(_PLACEHOLDER_WORDS.split()).isdisjoint(re.split(r"[\W_]+", inner.lower())):
            return found[0]
    return None


def _validate(bank: SkillBank, draft: Mapping[str, Any], earlier: Mapping[str, SkillEdit]) -> SkillEdit | str:
    """The change, or the reason why it is invalid. ``earlier``: valid changes of the same reply, by folded name."""
    kind = _text(draft, "change").lower()
    if kind not in _KEYS:
        return f'"change" is {kind[:60]!r}, expected "add" or "refine"'
    given = _text(draft, "name")
    name = given if given in bank else safe_name(given)
    if not name:
        return f"{given[:60]!r} is no name: use a few words of a-z, 0-9 and _"
    before = earlier.get(_fold(name))
    if before is not None:
        done = "added in this very reply" if before.kind == "add" else "changed in this reply already"
        return f"{name} is {done}: say it in one change"
    for key in ("description", "body"):
        if draft.get(key) is not None and not isinstance(draft[key], str):
            return f"{key} is not a text"
        if found := placeholder(_text(draft, key)):
            return f"{key} has the placeholder {found}: nothing is ever filled in, so say it in words"
    return _addition(bank, name, draft) if kind == "add" else _refinement(bank, name, draft)


def _addition(bank: SkillBank, name: str, draft: Mapping[str, Any]) -> SkillEdit | str:
    if taken := _find_skill(bank, name):
        return f"a skill is already called {taken}: refine it, or choose another name"
    action = _text(draft, "action").lower()
    if action not in _ADDABLE:
        return f'"action" is {action[:60]!r}, expected "insert" or "update"'
    if extra := _extra_key("add", draft):
        return f"an added skill has no {extra!r}"
    why = _text(draft, "why")[:MAX_WHY]
    change = SkillEdit("add", name, _text(draft, "description"), _text(draft, "body"), Action(action), why)
    return _check_texts(change, name, change.description or "", change.body or "")


def _refinement(bank: SkillBank, name: str, draft: Mapping[str, Any]) -> SkillEdit | str:
    known = _find_skill(bank, name)
    if known is None:
        near = difflib.get_close_matches(name, bank.names, n=1, cutoff=0.4)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(bank.names)}"
        return f"no skill is called {name}: {meant}"
    old = bank[known]
    same_action = _text(draft, "action").lower() == old.action.value
    if extra := _extra_key("refine", {k: v for k, v in draft.items() if not (k == "action" and same_action)}):
        return f"a refinement changes description and body only, not {extra!r}"
    description, body = (_text(draft, key) if draft.get(key) is not None else None for key in ("description", "body"))
    description = None if description == old.description else description
    body = None if body == old.body else body
    if description is None and body is None:
        return f"it changes neither description nor body of {known}"
    change = SkillEdit("refine", known, description, body, None, _text(draft, "why")[:MAX_WHY])
    return _check_texts(
        change, known, old.description if description is None else description, old.body if body is None else body
    )


def _check_texts(change: SkillEdit, name: str, description: str, body: str) -> SkillEdit | str:
    return next((f"{field} {reason}" for field, reason in faults(name, description, body)), change)


def _extra_key(kind: str, draft: Mapping[str, Any]) -> str | None:
    """The first key with a value that is not allowed in a change of this kind."""
    return next((key[:60] for key, value in draft.items() if key not in _KEYS[kind] and value is not None), None)


def _find_skill(bank: SkillBank, name: str) -> str | None:
    """The name of the skill called ``name``, with - and _ taken as equal; None if there is none."""
    return name if name in bank else next((known for known in bank.names if _fold(known) == _fold(name)), None)


def _fold(name: str) -> str:
    return name.replace("-", "_")


def _text(draft: Mapping[str, Any], key: str) -> str:
    value = draft.get(key)
    return "" if value is None else str(value).strip()
