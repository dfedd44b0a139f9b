"""Which split each question is in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from memskill_cli.datasets.base import SPLITS
from memskill_cli.datasets.conversations import Question
from memskill_cli.datasets.message_content import epoch
from memskill_cli.errors import DataError

UNASKED = "unasked"
"""The split of users without questions. Nothing is trained or evaluated on it."""
SHARES = (0.6, 0.8, 1.0)
"""Cumulated shares of train, val and test."""
FEW_USERS = 5
"""With fewer users that have questions, questions are split and not users."""

Asked = tuple[str, Question]
"""A user and one of the user's questions."""


@dataclass(frozen=True)
class SplitPlan:
    """The split of each question by (user, position), and what users are told about it."""

    splits: Mapping[tuple[str, int], str]
    notes: list[str]
    read_until: Mapping[str, float] = field(default_factory=dict)
    """By split: only sessions until this time (seconds since 1970) are read. {}: all sessions in all splits."""


def plan_splits(questions: Mapping[str, Sequence[Question]], split_by: str = "") -> SplitPlan:
    """The splits that questions name; for the others by user, question or time (:class:`..options.ReadOptions`).

    Raises DataError if questions have to be split by time and one has no time.
    """
    all_of = {(user, i): asked for user, those in questions.items() for i, asked in enumerate(those)}
    found = {key: question.split for key, question in all_of.items() if question.split}
    rest = {key: question for key, question in all_of.items() if not question.split}
    notes: list[str] = []
    until: dict[str, float] = {}
    if found:
        notes.append(f"{len(found)} of {len(all_of)} questions name their split")
    if rest:
        by = split_by or ("user" if len(questions) >= FEW_USERS else "question")
        if by == "time":
            found |= _by_time(rest)
            until = _limits(found, all_of)
        else:
            found |= _by_user(rest) if by == "user" else _by_question(rest)
        notes.append(_described(by, bool(split_by), len(questions)))
    notes += _empty(Counter(found.values()), split_by) if all_of else []
    return SplitPlan(found, notes, until)


def _share(text: str) -> float:
    """A number in [0, 1) that depends only on ``text``."""
    return int.from_bytes(hashlib.sha256(f"split:{text}".encode(errors="surrogatepass")).digest()[:8]) / 2**64


def _of_share(share: float) -> str:
    return next(split for split, limit in zip(SPLITS, SHARES, strict=True) if share < limit)


def _by_user(rest: Mapping[tuple[str, int], Question]) -> dict[tuple[str, int], str]:
    return {key: _of_share(_share(key[0])) for key in rest}


def _by_question(rest: Mapping[tuple[str, int], Question]) -> dict[tuple[str, int], str]:
    return _by_rank(rest, lambda key: (_share(f"{key[0]}\0{rest[key].question}"), key))


def _by_time(rest: Mapping[tuple[str, int], Question]) -> dict[tuple[str, int], str]:
    """The earliest questions are train, the latest test; questions of one time are in one split."""
    if undated := [question for question in rest.values() if question.asked is None]:
        raise DataError(
            f"{undated[0].where}: asked is missing, and --split-by time needs it ({len(undated)} questions have none)",
            hint='add the day on which a question is asked: "asked": "2025-07-01"',
        )
    ranked = _by_rank(rest, lambda key: (_asked(rest[key]), key))
    first: dict[float, str] = {}
    for key in sorted(rest, key=lambda key: (_asked(rest[key]), key)):
        first.setdefault(_asked(rest[key]), ranked[key])
    return {key: first[_asked(question)] for key, question in rest.items()}


def _by_rank(
    rest: Mapping[tuple[str, int], Question], rank: Callable[[tuple[str, int]], tuple[float, tuple[str, int]]]
) -> dict[tuple[str, int], str]:
    """The first 60 % train, the next 20 % val, the last test; at least one of each if there are three."""
    order, each = sorted(rest, key=rank), max(1, round(len(rest) / 5))
    sizes = (len(rest) - 2 * each, each, each) if len(rest) >= len(SPLITS) else (1, 0, 1)
    names = [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    return dict(zip(order, names, strict=False))


def _limits(found: Mapping[tuple[str, int], str], all_of: Mapping[tuple[str, int], Question]) -> dict[str, float]:
    """For train and val, the time of their last question: later sessions are not read in these splits."""
    times: dict[str, float] = {}
    for key, split in found.items():
        if all_of[key].asked is not None:
            times[split] = max(times.get(split, float("-inf")), _asked(all_of[key]))
    return {split: time for split, time in times.items() if split != "test"}


def _asked(question: Question) -> float:
    """When a question is asked; a day without a clock counts to its end."""
    assert question.asked is not None
    time = question.asked
    day_only = time.tzinfo is None and (time.hour, time.minute, time.second) == (0, 0, 0)
    return epoch(time) + (timedelta(days=1).total_seconds() if day_only else 0)


def _described(by: str, chosen: bool, users: int) -> str:
    if by == "user":
        return "split by a hash of the user id (60 % train, 20 % val, 20 % test): more users move nobody"
    if by == "time":
        return (
            "split by time: train and val read the sessions before their last question; the latest questions are test"
        )
    why = "as asked for" if chosen else f"users with questions: {users}, fewer than {FEW_USERS}"
    return f"split by question, 60/20/20 ({why}): the splits have the same conversations"


def _empty(sizes: Counter[str], split_by: str) -> list[str]:
    missing = [split for split in ("train", "test") if not sizes[split]]
    if not missing:
        return []
    how = 'name splits in the questions ("split": "test")'
    other = "" if split_by == "question" else ", or prepare with --split-by question"
    return [f"no question is in {' or '.join(missing)}: {how}{other}"]
