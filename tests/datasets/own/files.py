"""Writes files of conversations and questions, and reads them as ``prepare`` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memskill_cli.datasets.base import PrepareOptions, ReaderCallbacks
from memskill_cli.datasets.own.dataset import OwnConversations
from memskill_cli.datasets.own.options import ReadOptions
from memskill_cli.types import Trace


def line(user: str | None = "u-anna", session: str | None = "s1", *texts: str, **more: Any) -> dict[str, Any]:
    """A session of alternating speakers."""
    said = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts or ("Hi",))]
    names = {"user_id": user, "session_id": session}
    return {**{key: value for key, value in names.items() if value is not None}, "messages": said, **more}


def at(time: Any, session: dict[str, Any]) -> dict[str, Any]:
    """The session with a time at its first message."""
    first, *rest = session["messages"]
    return {**session, "messages": [{**first, "timestamp": time}, *rest]}


def asked(user: str = "u-anna", question: str = "Where?", *answers: str, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "question": question, "answers": list(answers or ("Leeds",)), **more}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def read(source: Path, questions: Path | None = None, **options: Any) -> tuple[list[Trace], list[str]]:
    """The traces and the notes."""
    notes: list[str] = []
    reader = OwnConversations("mine", ReadOptions(questions=questions, **options))
    (part,) = reader.parts(source, PrepareOptions())
    return list(reader.read(part, ReaderCallbacks(notes.append))), notes


def turns(trace: Trace) -> list[tuple[str, str]]:
    return [tuple(turn) for session in trace.sessions for turn in session.turns]
