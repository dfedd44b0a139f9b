"""``prepare --write-questions N``: questions about prepared conversations, for a person to read and edit."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.agent.question_writer import KINDS, Draft, draft_questions, problem_of, writer_messages
from memskill_cli.app.estimate import REPLY_TOKENS, Estimate
from memskill_cli.app.runtime import ProviderAccess, check_access, open_runtime
from memskill_cli.config import Config
from memskill_cli.datasets.own.source import QUESTIONS, USAGE
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.datasets.registry import get, is_own
from memskill_cli.errors import DataError, UnreadableReplyError, UsageError
from memskill_cli.llm.client import LLMClient
from memskill_cli.types import Session, Trace, Turn
from memskill_cli.utils.files import write_atomic
from memskill_cli.utils.relative_dates import parse_date
from memskill_cli.utils.seeding import seed_from

PER_CALL = 3
"""Questions that are asked for in one call."""
SESSIONS = 4
"""Sessions that a call reads at most."""
MAX_CHARS = 12_000
"""Characters of these sessions together at most; longer ones are left out. The embedded model reads fewer."""
EMBEDDED_CHARS = 4_000
ROUNDS = 3
"""A user gets up to this many times the calls that would do if every question were kept."""
AT_ONCE = 8
"""Users whose questions are written at the same time."""


@dataclass(frozen=True)
class WrittenQuestions:
    """The file, the number of questions by kind, and why others were not kept."""

    path: Path
    kinds: Counter[str]
    dropped: Counter[str]
    users: int


def check_writing(dataset: str, data_dir: Path, number: int, force: bool) -> None:
    """Raise UsageError or DataError if questions cannot be written, before anything is prepared or paid."""
    if number < 1:
        raise UsageError(f"--write-questions {number}: the number of questions must be above 0")
    path = data_dir / dataset / QUESTIONS
    if path.exists() and not force:
        raise DataError(
            f"{path} exists, and may have been edited",
            hint=f"use it with --questions {path}, or write it again with --force",
        )


async def write_questions(
    dataset: str,
    data_dir: Path,
    number: int,
    settings: Config,
    access: ProviderAccess,
    notice: Callable[[str], None],
    advance: Callable[[int], None] = lambda done: None,
) -> WrittenQuestions:
    """Write ``number`` questions for each user to ``questions.jsonl`` beside the prepared data.

    The same command again, after it was stopped, takes replies from the cache. ``advance`` is called with the number of
    questions that a user got. Raises DataError if none was kept; BudgetExceededError, ModelError and others of
    :meth:`LLMClient.ask`.
    """
    if not is_own(dataset):
        raise UsageError(f"--write-questions is for conversations of your own, and {dataset} is a benchmark")
    check_access(settings, access)
    folder = data_dir / dataset
    notice(f"expected: {_expected(dataset, data_dir, number, settings)}")
    lines: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    users = 0
    async with open_runtime(settings, access, folder / USAGE, "write-questions", notice) as opened:
        for traces in _batches(_traces(dataset, data_dir)):
            writers = [_Writer(opened.context.llm, settings, trace, number) for trace in traces]
            for writer, written in zip(writers, await _all(writers), strict=True):
                lines += written
                dropped += writer.dropped
                users += 1
                advance(len(written))
    path = folder / QUESTIONS
    if not lines:
        why = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "the model wrote none"
        raise DataError(
            f"no question about {dataset} was kept ({why})", hint="try a larger model: --designer-model NAME"
        )
    write_atomic(path, b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines).decode())
    return WrittenQuestions(path, Counter(line["category"] for line in lines), dropped, users)


async def _all(writers: Sequence[_Writer]) -> list[list[dict[str, Any]]]:
    """The lines of each writer. If one fails, the others are stopped and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(writer.write()) for writer in writers]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _traces(dataset: str, data_dir: Path) -> Iterator[Trace]:
    """Every user once. Of a user in several splits, the last one, which has all sessions."""
    splits = [load_split(dataset, data_dir, name) for name in reversed(load_manifest(dataset, data_dir).splits)]
    seen: set[str] = set()
    for trace in itertools.chain.from_iterable(splits):
        if trace.trace_id not in seen:
            seen.add(trace.trace_id)
            yield trace


def _batches(traces: Iterator[Trace]) -> Iterator[list[Trace]]:
    while batch := list(itertools.islice(traces, AT_ONCE)):
        yield batch


def _expected(dataset: str, data_dir: Path, number: int, settings: Config) -> str:
    """Calls, tokens and dollars if every question is kept."""
    found, characters = Estimate(), _most_chars(settings)
    users = load_manifest(dataset, data_dir).traces
    calls = users * -(-number // PER_CALL)
    prompt = writer_messages([], list(KINDS))
    length = sum(len(message["content"]) for message in prompt)
    read = min(characters, _mean_chars(dataset, data_dir) * SESSIONS)
    found.add("designer", calls, (length + read) / 4)
    found.add("answer", 2 * users * number, (len(get(dataset).answer_prompt) + 300) / 4)
    table = found.to_dict(settings)
    usd = "price unknown" if table["usd"] is None else f"${table['usd']:.2f}"
    tokens = table["prompt_tokens"] + round(calls * REPLY_TOKENS["designer"])
    return f"{table['calls']} calls or more, about {tokens:,} tokens, {usd}"


def _mean_chars(dataset: str, data_dir: Path) -> float:
    """The mean length of a session of the first users."""
    first = itertools.islice(_traces(dataset, data_dir), AT_ONCE)
    lengths = [_length(session) for trace in first for session in trace.sessions]
    return sum(lengths) / max(1, len(lengths))


def _length(session: Session) -> int:
    return sum(len(turn.text) for turn in session.turns)


def _most_chars(settings: Config) -> int:
    return EMBEDDED_CHARS if settings.models.designer.startswith("embedded") else MAX_CHARS


class _Writer:
    """Writes the questions of one user."""

    def __init__(self, llm: LLMClient, settings: Config, trace: Trace, number: int) -> None:
        self._llm, self._settings, self._trace, self._number = llm, settings, trace, number
        self._used: Counter[str] = Counter()
        self._kept: list[dict[str, Any]] = []
        self._kinds: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    async def write(self) -> list[dict[str, Any]]:
        """The lines of the file for this user, at most ``number``."""
        calls = ROUNDS * -(-self._number // PER_CALL)
        for call in range(calls):
            if len(self._kept) >= self._number:
                break
            await self._round(call)
        return self._kept

    async def _round(self, call: int) -> None:
        sessions = self._sessions(call)
        kinds = self._wanted_kinds(len(sessions))
        try:
            drafts = await draft_questions(self._llm, sessions, kinds)
        except UnreadableReplyError:
            self.dropped["reply could not be read"] += 1
            return
        for draft in drafts:
            if len(self._kept) >= self._number:
                return
            asked = [line["question"] for line in self._kept]
            prompt = get(self._settings.dataset).answer_prompt
            if problem := await problem_of(self._llm, draft, sessions, asked, prompt):
                self.dropped[problem] += 1
            else:
                self._keep(draft, sessions)

    def _keep(self, draft: Draft, sessions: Sequence[Session]) -> None:
        labels = list(dict.fromkeys(sessions[number].label for number, _ in draft.evidence))
        self._used.update(labels)
        self._kinds[draft.kind] += 1
        asked = parse_date(self._trace.sessions[-1].date)
        self._kept.append(
            {
                "user_id": self._trace.trace_id,
                "question": draft.question,
                "answers": [draft.answer],
                "category": draft.kind,
                **({"asked": asked.isoformat()} if asked else {}),
                "evidence": labels,
                "quotes": [quote for _, quote in draft.evidence],
            }
        )

    def _sessions(self, call: int) -> list[Session]:
        """Those with the fewest questions so far, drawn by chance among equals, in order of time."""
        rng = random.Random(seed_from(self._settings.seed, "questions", self._trace.trace_id, call))  # noqa: S311
        order = sorted(self._trace.sessions, key=lambda session: (self._used[session.label], rng.random()))
        room, chosen = _most_chars(self._settings), list[Session]()
        for session in order:
            if len(chosen) < SESSIONS and _length(session) <= room:
                room -= _length(session)
                chosen.append(session)
        return sorted(chosen, key=self._trace.sessions.index) or [_shortened(order[0], room)]

    def _wanted_kinds(self, sessions: int) -> list[str]:
        """The kinds with the fewest questions so far. One session has no change and no several sessions."""
        possible = [kind for kind in KINDS if sessions > 1 or kind not in ("change", "several sessions")]
        return sorted(possible, key=lambda kind: self._kinds[kind])[: min(PER_CALL, self._number - len(self._kept))]


def _shortened(session: Session, room: int) -> Session:
    """The beginning of a session that is too long: whole turns, at least a part of the first."""
    turns: list[Turn] = []
    for turn in session.turns:
        if turns and len(turn.text) > room:
            break
        turns.append(turn._replace(text=turn.text[:room]))
        room -= len(turn.text)
    return Session(session.label, session.date, tuple(turns))
