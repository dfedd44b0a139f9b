"""The files of a source, and all that is read from them."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from memskill_cli.datasets.conversations import Question, Skipped
from memskill_cli.datasets.importers import Detected, detect
from memskill_cli.datasets.own.intake import Intake, Redactor
from memskill_cli.datasets.own.options import ReadOptions
from memskill_cli.datasets.own.questions import read_questions, resolve
from memskill_cli.datasets.own.splits import SplitPlan, plan_splits
from memskill_cli.datasets.own.store import Store
from memskill_cli.errors import DataError

QUESTIONS = "questions.jsonl"
USAGE = "usage.jsonl"
"""The calls of ``--write-questions``, beside the prepared data."""
ENDINGS = (".jsonl", ".json", ".ndjson", ".zip")
COMPRESSED = (".gz", ".zst")
_SHOWN = 5


class SourceFiles(NamedTuple):
    """The files to read; ``ignored`` are files of a folder with other endings."""

    found: Detected
    questions: Path | None
    ignored: list[Path]

    @property
    def fingerprint(self) -> str:
        """A digest of the contents."""
        sha = hashlib.sha256(self.found.importer.NAME.encode())
        for path in [*self.found.files, *([self.questions] if self.questions else [])]:
            with path.open("rb") as file:
                sha.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return sha.hexdigest()

    def notes(self) -> list[str]:
        """What to tell about the choice of files."""
        notes = [self.found.reason]
        if self.found.left_out:
            notes.append(f"not read (empty, damaged or in another format): {_listed(self.found.left_out)}")
        if self.ignored:
            notes.append(f"not read, because their names end in none of {', '.join(ENDINGS)}: {_listed(self.ignored)}")
        return notes


@dataclass(frozen=True)
class Gathered:
    """All that is read from a source. ``skipped`` and ``odd`` are numbers by kind."""

    store: Store
    questions: Mapping[str, Sequence[Question]]
    splits: SplitPlan
    skipped: Skipped
    odd: Skipped
    redacted: Skipped

    def notes(self) -> list[str]:
        """What to tell about irregularities, and how they were handled."""
        notes = [f"left out: {_counted(self.skipped)}"] if +self.skipped else []
        notes += [f"{what}: {number}" for what, number in sorted((+self.odd).items())]
        if +self.redacted:
            notes.append(f"replaced: {_counted(self.redacted)}")
        users = self.store.users()
        if unasked := [user for user in users if user not in self.questions]:
            what = "nothing is trained or evaluated on them"
            notes.append(f"users without questions: {len(unasked)} of {len(users)}; {what}")
        return notes + self.splits.notes


def find_files(source: Path, options: ReadOptions) -> SourceFiles:
    """The files of a file or folder. Raises DataError if there are none, or if their format is not known."""
    if options.questions and not options.questions.is_file():
        raise DataError(f"{options.questions}: no such file", hint="give the path of a questions.jsonl to --questions")
    if source.is_file():
        return SourceFiles(detect([source], options.format), options.questions, [])
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder", hint="give the path of your conversations to --source")
    every = sorted(path for path in source.rglob("*") if path.is_file() and not _hidden(path, source))
    questions = options.questions or (source / QUESTIONS if source / QUESTIONS in every else None)
    data = [path for path in every if _is_data(path) and not _same(path, questions)]
    ignored = [path for path in every if not _is_data(path) and not _same(path, questions)]
    if not data:
        raise DataError(
            f"{source}: no file of conversations ({', '.join(ENDINGS)}, also with .gz or .zst)",
            hint="give a file to --source, or rename the files",
        )
    return SourceFiles(detect(data, options.format), questions, ignored)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def _is_data(path: Path) -> bool:
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(ENDINGS)


def _same(path: Path, other: Path | None) -> bool:
    return other is not None and other.exists() and path.samefile(other)


@contextmanager
def gather(
    source: Path, files: SourceFiles, options: ReadOptions, progress: Callable[[int], None] = lambda sessions: None
) -> Iterator[Gathered]:
    """Read everything. ``progress`` is called with the number of sessions so far.

    The sessions are on disk until the end of the ``with`` block. Raises DataError with file, line and field.
    """
    store, redactor, skipped = Store(), Redactor(options.redact), Skipped()
    importer = files.found.importer
    intake = Intake(store, options, redactor, skipped, strict=getattr(importer, "STRICT", False))
    try:
        asked = list(_questions(files, skipped))  # before the conversations, so that an error in them is told soon
        done = 0
        for path in files.found.files:
            user = _user_of(path, source)
            for conversation in importer.read(path, skipped):
                intake.add(conversation, user)
                progress(done := done + 1)
        if not store.count():
            what = f" (left out: {_counted(skipped)})" if +skipped else ""
            raise DataError(f"{source}: no conversation has a message to keep{what}", hint="see docs/own-data.md")
        questions = resolve(asked, store, redactor, skipped)
        splits = plan_splits(questions, options.split_by)
        yield Gathered(store, questions, splits, skipped, intake.odd, redactor.found)
    except sqlite3.OperationalError as error:
        raise DataError(
            f"the temporary file for the sessions cannot be written: {error}",
            hint="set SQLITE_TMPDIR to a folder with free space, at least the size of the source",
        ) from None
    finally:
        store.close()


def _questions(files: SourceFiles, skipped: Skipped) -> Iterator[Question]:
    """The questions of the questions file, else those that the format itself has."""
    own = getattr(files.found.importer, "questions", None)
    if files.questions:
        yield from read_questions(files.questions)
    elif own:
        for path in files.found.files:
            yield from own(path, skipped)


def _user_of(path: Path, source: Path) -> str:
    """The user of conversations that name none: the name of the file without its endings, in a folder with its path."""
    name = path.name
    for ending in COMPRESSED + ENDINGS:
        name = name.removesuffix(ending)
    if source.is_dir():
        return path.relative_to(source).with_name(name or path.name).as_posix()
    return name or path.name


def _listed(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:_SHOWN])
    return names + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


def _counted(counts: Skipped) -> str:
    return ", ".join(f"{kind} {number}" for kind, number in sorted((+counts).items()))
