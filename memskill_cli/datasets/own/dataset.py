"""Conversations of your own as a dataset: a trace is a user, with the questions about the user's sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memskill_cli.datasets.base import (
    ABSTENTION,
    SPLITS,
    Dataset,
    PrepareOptions,
    ReaderCallbacks,
    SourceFile,
    prepare_command,
    reject_unsupported,
)
from memskill_cli.datasets.conversations import Question
from memskill_cli.datasets.message_content import time_text
from memskill_cli.datasets.own.options import ReadOptions
from memskill_cli.datasets.own.source import Gathered, SourceFiles, find_files, gather
from memskill_cli.datasets.own.splits import UNASKED
from memskill_cli.datasets.own.store import StoredSession
from memskill_cli.errors import UsageError
from memskill_cli.types import Query, Session, Trace, Turn

KIND = "conversations"
"""``reading["kind"]`` in the manifest of such a dataset."""
ANSWER_PROMPT = """
You are the answering part of a memory system. You are given memories of conversations, and a question about them.

- "user" and "assistant" in a memory are who spoke. If the question says "I" or "me", that is the user.
- If the day on which the question is asked is given, count days, weeks and months from it.
- Where memories contradict each other, the later one holds, unless the question is about the past.
- Where several memories belong to the answer, use all of them.

Answer from the memories, in as few words as possible: a name, a date, a short phrase; several things separated by
commas. Use the words of the memories. If the memories only suggest the answer, give the likeliest one. No explanation.
""".strip()


class OwnConversations(Dataset):
    """A dataset that ``prepare`` made of a user's own files. Its name is the user's choice."""

    answer_prompt = ANSWER_PROMPT
    has_abstention = True
    excluded_queries = "abstention; --include-abstention asks them and reports them separately"
    sample_name = KIND

    def __init__(self, name: str, options: ReadOptions = ReadOptions()) -> None:
        self.name = name
        self._options = options
        self._files: SourceFiles | None = None

    def parts(self, source: Path | str | None, ask: PrepareOptions) -> Sequence[SourceFile]:
        """The file or folder as one part with all splits. See :class:`~memskill_cli.datasets.base.Dataset`."""
        reject_unsupported(self.name, ask)
        if isinstance(source, str):
            raise UsageError(
                f"conversations of your own are read from files, not from {source}",
                hint="download the file first, then give its path to --source",
            )
        if source is None:
            raise UsageError(
                f"{self.name} is no benchmark, so --source must name your conversations",
                hint=prepare_command(self.name, None, "--source", "FILE"),
            )
        self._files = files = find_files(source, self._options)
        how = (files.fingerprint, self._options.roles, self._options.split_by, self._options.redact)
        fingerprint = hashlib.sha256(repr(how).encode()).hexdigest()
        return [SourceFile(str(source), source, fingerprint=fingerprint, flags=tuple(self._options.flags()))]

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        """Each user once for every split that has questions about the user. All sessions are read before the first one.

        See :class:`~memskill_cli.datasets.base.Dataset`.
        """
        assert part.path is not None
        assert self._files is not None  # parts() found them
        for note in self._files.notes():
            watch.note(note)
        with gather(part.path, self._files, self._options, lambda done: watch.read_progress(done, None)) as gathered:
            users = gathered.store.users()
            for number, user in enumerate(users, 1):
                yield from self._traces(gathered, user)
                watch.progress(number, len(users))
            for note in gathered.notes():
                watch.note(note)

    def reading(self) -> dict[str, Any]:
        """See :class:`~memskill_cli.datasets.base.Dataset`."""
        options = self._options
        return {
            "kind": KIND,
            "format": self._files.found.importer.NAME if self._files else options.format,
            "roles": list(options.roles),
            "split_by": options.split_by,
            "redacted": options.redact,
            "flags": options.flags(),
        }

    def _traces(self, gathered: Gathered, user: str) -> Iterator[Trace]:
        sessions = gathered.store.sessions_of(user)
        if not sessions:
            return
        questions = gathered.questions.get(user, ())
        queries: dict[str, list[Query]] = {}
        for place, question in enumerate(questions):
            split = gathered.splits.splits[user, place]
            queries.setdefault(split, []).append(_query(f"{user}:{place}", user, question))
        for split in SPLITS:
            if split in queries:
                until = gathered.splits.read_until.get(split, float("inf"))
                read = tuple(_session(one) for one in sessions if one.time is None or one.time <= until)
                if read and split == "train" and not any(query.scored for query in queries[split]):
                    gathered.odd["users in train whose questions are all of the kind abstention (not trained on)"] += 1
                    yield Trace(user, self.name, UNASKED, read, tuple(queries[split]))
                elif read:
                    yield Trace(user, self.name, split, read, tuple(queries[split]))
                else:
                    gathered.skipped[f"{split} questions asked before any session"] += len(queries[split])
        if not questions:
            yield Trace(user, self.name, UNASKED, tuple(map(_session, sessions)), ())


def _session(stored: StoredSession) -> Session:
    return Session(stored.session, stored.date, tuple(Turn(turn.speaker, turn.text) for turn in stored.turns))


def _query(query_id: str, user: str, question: Question) -> Query:
    return Query(
        query_id,
        user,
        question.category,
        question.question,
        question.answers,
        date=time_text(question.asked),
        scored=question.category != ABSTENTION,
        evidence=question.evidence,
    )
