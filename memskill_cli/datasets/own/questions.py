"""``questions.jsonl``: questions about the conversations of a user, with answers and evidence.

    {"user_id": "u-anna", "question": "Where does Anna live?", "answers": ["Leeds"], "category": "fact",
     "asked": "2025-07-01", "evidence": ["s1"], "split": "test"}

Needed: ``question``, ``answers``, and ``user_id`` if there are several users.
``docs/schemas/questions.schema.json`` says the same as this reader.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from memskill_cli.datasets.base import SPLITS
from memskill_cli.datasets.conversations import Question, Skipped
from memskill_cli.datasets.importers.messages import check_keys, time_of
from memskill_cli.datasets.json_records import Record, kind
from memskill_cli.datasets.own.intake import Redactor
from memskill_cli.datasets.own.store import Store
from memskill_cli.datasets.source_files import head_of, json_lines
from memskill_cli.errors import DataError

KEYS = ("user_id", "question", "answers", "category", "asked", "evidence", "split", "quotes")
"""``quotes`` are for the person who reviews questions that a model wrote. They are not used."""
HINT = "see the format: docs/own-data.md"


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a file in its order. Raises DataError with file, line and field."""
    head = head_of(path)
    if head.shape != "lines":
        raise DataError(f"{path.name}: not JSON Lines (one question a line)", hint=HINT)
    if isinstance(head.values[0], dict) and "messages" in head.values[0]:
        raise DataError(f"{path.name}: conversations, not questions", hint="give the file to --source")
    for number, value in json_lines(path):
        yield _Line(f"{path.name}:{number}", value, HINT).question()


class _Line(Record):
    drops_nulls = False

    def question(self) -> Question:
        given = {name: value for name, value in self.record.items() if value is not None}
        check_keys(self, self.record, KEYS)
        self.expect(given.get("quotes", []), list, "quotes")
        answers = self.field(given, "answers", list) or self.fail("answers is an empty list")
        return Question(
            user_id=self.text(given, "user_id") if "user_id" in given else None,
            question=self.text(given, "question"),
            answers=tuple(self.answer(answer, f"answers[{i}]") for i, answer in enumerate(answers)),
            category=self.text(given, "category") if "category" in given else "question",
            asked=time_of(self, given.get("asked"), "asked"),
            evidence=tuple(
                self._id(name, f"evidence[{i}]")
                for i, name in enumerate(self.expect(given.get("evidence", []), list, "evidence"))
            ),
            split=self._split(given.get("split", "")),
            where=self.where,
        )

    def _id(self, value: Any, place: str) -> str:
        text: str = self.expect(value, str, place).strip()
        return text or self.fail(f"{place} is empty")

    def _split(self, value: Any) -> str:
        if value == "" or (isinstance(value, str) and value in SPLITS):
            return value
        shown = repr(value[:40]) if isinstance(value, str) else kind(value)
        near = difflib.get_close_matches(str(value), SPLITS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return self.fail(f"split is {shown}, expected {', '.join(SPLITS)}{meant}")


def resolve(
    questions: Iterable[Question], store: Store, redactor: Redactor, skipped: Skipped
) -> dict[str, list[Question]]:
    """The questions by user, with texts redacted and evidence as ``Query.evidence`` has it.

    Raises DataError, with the nearest name, if a user or a session does not exist.
    """
    resolver = _Resolver(store, redactor, skipped)
    found: dict[str, list[Question]] = {}
    seen: set[tuple[object, ...]] = set()
    for question in questions:
        known = resolver.resolved(question)
        assert known.user_id is not None
        same = (known.user_id, known.question, known.answers, known.asked)
        if not any(store.ids_of(known.user_id).values()):
            skipped["questions about users without messages to keep"] += 1
        elif same in seen:
            skipped["duplicate questions"] += 1
        else:
            seen.add(same)
            found.setdefault(known.user_id, []).append(known)
    return found


class _Resolver:
    def __init__(self, store: Store, redactor: Redactor, skipped: Skipped) -> None:
        self._store, self._redactor, self._skipped = store, redactor, skipped
        self._users = dict.fromkeys(store.users())
        self._sessions = cache(store.ids_of)

    def resolved(self, question: Question) -> Question:
        user = self._user(question)
        refs = dict.fromkeys(ref for name in question.evidence if (ref := self._ref(question, user, name)))
        return replace(
            question,
            user_id=user,
            question=self._redactor.text(question.question),
            answers=tuple(map(self._redactor.text, question.answers)),
            evidence=tuple(refs),
        )

    def _user(self, question: Question) -> str:
        if question.user_id is None:
            if len(self._users) == 1:
                return next(iter(self._users))
            raise DataError(
                f"{question.where}: user_id is missing, and the conversations have {len(self._users)} users",
                hint=f'for example: "user_id": "{next(iter(self._users))}"',
            )
        user = self._redactor.identifier(question.user_id)
        if user not in self._users:
            _unknown(question.where, "user_id", "user", question.user_id, self._users)
        return user

    def _ref(self, question: Question, user: str, name: str) -> str:
        """A session's label, or ``label:turn`` for a message of it; "" for a session of which nothing is kept."""
        session, number = self._session(question, user, name)
        if not self._sessions(user)[session]:
            self._skipped["evidence in sessions without messages to keep"] += 1
            return ""
        if number is None:
            return session
        stored = self._store.get(user, session)
        assert stored is not None
        if number >= stored.messages:
            raise DataError(
                f"{question.where}: evidence {name!r}: session {session!r} has {stored.messages} messages, from 0",
                hint=HINT,
            )
        place = next((place for place, turn in enumerate(stored.turns) if turn.place == number), None)
        return session if place is None else f"{session}:{place}"

    def _session(self, question: Question, user: str, name: str) -> tuple[str, int | None]:
        known = self._sessions(user)
        whole = self._redactor.identifier(name)
        if whole in known:
            return whole, None
        session, _, number = name.rpartition(":")
        if (session := self._redactor.identifier(session)) in known and number.isdecimal():
            return session, int(number)
        owner = self._store.owner_of(whole)
        also = f" (user {owner!r} has such a session)" if owner else ""
        return _unknown(question.where, "evidence", "session", name, known, f" of user {user!r}{also}")


def _unknown(where: str, field: str, what: str, name: str, known: Iterable[str], behind: str = "") -> NoReturn:
    names = list(known)
    near = difflib.get_close_matches(name, names[:20_000], n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, names[:5]))}"
    more = f" and {len(names) - 5} more" if not near and len(names) > 5 else ""
    raise DataError(f"{where}: {field}: no {what} is called {name[:80]!r}{behind}; {meant}{more}", hint=HINT)
