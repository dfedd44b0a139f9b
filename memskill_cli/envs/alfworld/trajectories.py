"""Expert trajectories as a trace: whole ones packed into spans, and the pairs of batches that are trained on.

A prepared ALFWorld game is a trace with one session (its trajectory, labelled with the task type) and one query (the
task itself). What is read at once is many of them: Batch A of section 2 of the method.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from memskill_cli.datasets.spans import count_tokens, cut
from memskill_cli.errors import DataError
from memskill_cli.types import Query, Span, Trace

_BETWEEN = "\n\n"


class Pair(NamedTuple):
    """What one episode is made of: trajectories to read (A), tasks to play from the memory they leave (B)."""

    read: list[Trace]
    play: list[Trace]


class Sizes(NamedTuple):
    """How large the batches of a pair are, and how often both are of one task type."""

    trajectories: tuple[int, int]
    tasks: tuple[int, int]
    same_type: float


def task_type(game: Trace) -> str:
    return game.sessions[0].label


def by_type(games: Iterable[Trace]) -> dict[str, list[Trace]]:
    """``games`` by task type, types in alphabetical order."""
    found: dict[str, list[Trace]] = {}
    for game in games:
        found.setdefault(task_type(game), []).append(game)
    return dict(sorted(found.items()))


def draw_pair(games: dict[str, list[Trace]], sizes: Sizes, rng: random.Random) -> Pair:
    """A pair from ``games`` by type; no game is in both batches.

    Where there are too few, a pair takes what there is: at most half of a type's games are played and the rest read;
    of a type with a single game that one is played, and trajectories of other types are read. Raises DataError if
    there are not two games.
    """
    wanted_tasks, wanted_read = rng.randint(*sizes.tasks), rng.randint(*sizes.trajectories)
    kind = rng.choice(list(games))
    others = [other for other in games if other != kind]
    source = kind if rng.random() < sizes.same_type or not others else rng.choice(others)
    most = max(1, len(games[kind]) // 2) if source == kind else len(games[kind])
    play = rng.sample(games[kind], min(wanted_tasks, most))
    taken = {game.trace_id for game in play}
    left = [game for game in games[source] if game.trace_id not in taken]
    left = left or [game for other in others for game in games[other]]
    if not left:
        raise DataError("training needs at least two ALFWorld games: one to read, another to play")
    return Pair(rng.sample(left, min(wanted_read, len(left))), play)


def scarce(games: dict[str, list[Trace]], sizes: Sizes) -> dict[str, int]:
    """Task types whose games don't make up even the smallest pair, with how many there are."""
    needed = sizes.trajectories[0] + sizes.tasks[1]
    return {kind: len(found) for kind, found in games.items() if len(found) < needed}


def gathered(trace_id: str, split: str, games: Sequence[Trace], queries: Sequence[Query] = ()) -> Trace:
    """One trace of the trajectories of ``games``, in order, to be asked ``queries``."""
    sessions = tuple(session for game in games for session in game.sessions)
    return Trace(trace_id, "alfworld", split, sessions, tuple(queries))


def pack(trace: Trace, tokens: int, max_spans: int = 0) -> list[Span]:
    """The spans of ``trace``: as many whole trajectories, one after the other, as fit ``tokens`` (cl100k_base).

    None is ever split: one that is longer is a span of its own. Only the first ``max_spans`` if that is above 0.
    """
    groups: list[list[str]] = []
    room = 0
    for whole in cut(trace, "full-session"):
        length = _length(whole.text) + 1  # the blank line between two
        if not groups or length > room:
            groups.append([])
            room = tokens + 1
        groups[-1].append(whole.text)
        room -= length
    texts = [_BETWEEN.join(group) for group in groups[: max_spans or None]]
    return [Span(trace.trace_id, index, text) for index, text in enumerate(texts)]


@lru_cache(maxsize=8192)
def _length(text: str) -> int:
    """Tokens of a trajectory; one is packed in many episodes."""
    return count_tokens(text)
