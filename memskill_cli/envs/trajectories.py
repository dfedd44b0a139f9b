"""Pack expert trajectories into traces and spans, and draw the two batches of games of a training episode.

A prepared game is a trace with one session (its trajectory, labelled with the task type) and one query (the task). An
episode reads many games (batch A) and plays others (batch B): section 2 of docs/method.md.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from memskill_cli.datasets.spans import split_spans
from memskill_cli.errors import DataError
from memskill_cli.types import Query, Span, Trace
from memskill_cli.utils.tokens import count_tokens

_BETWEEN = "\n\n"


class EpisodeGames(NamedTuple):
    """The games of an episode: trajectories to read (batch A), and tasks to play with the memory (batch B)."""

    read: list[Trace]
    play: list[Trace]


class Sizes(NamedTuple):
    """Sizes (minimum, maximum) of the two batches, and the probability that both have the same task type."""

    trajectories: tuple[int, int]
    tasks: tuple[int, int]
    same_type: float


def task_type(game: Trace) -> str:
    return game.sessions[0].label


def by_type(games: Iterable[Trace]) -> dict[str, list[Trace]]:
    """``games`` by task type, in alphabetical order of types."""
    found: dict[str, list[Trace]] = {}
    for game in games:
        found.setdefault(task_type(game), []).append(game)
    return dict(sorted(found.items()))


def draw_pair(games: dict[str, list[Trace]], sizes: Sizes, rng: random.Random) -> EpisodeGames:
    """Draw the two batches of an episode from ``games`` by task type; no game is in both.

    If there are too few games, the batches are smaller: at most half of the games of a type are played and the others
    read. If a type has one game, that game is played, and trajectories of other types are read. Raises DataError if
    there are fewer than two games.
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
        raise DataError("training needs at least two games: one to read, another to play")
    return EpisodeGames(rng.sample(left, min(wanted_read, len(left))), play)


def undersized_types(games: dict[str, list[Trace]], sizes: Sizes) -> dict[str, int]:
    """Task types with too few games for the smallest batch A and the largest batch B, with their numbers of games."""
    needed = sizes.trajectories[0] + sizes.tasks[1]
    return {kind: len(found) for kind, found in games.items() if len(found) < needed}


def merge_trajectories(
    trace_id: str, dataset: str, split: str, games: Sequence[Trace], queries: Sequence[Query] = ()
) -> Trace:
    """One trace with the trajectories of ``games``, in order, and the ``queries``."""
    sessions = tuple(session for game in games for session in game.sessions)
    return Trace(trace_id, dataset, split, sessions, tuple(queries))


def pack_trajectories(trace: Trace, tokens: int, max_spans: int = 0) -> list[Span]:
    """Spans of ``trace``, each with as many whole trajectories as fit into ``tokens`` (cl100k_base).

    A trajectory is never split; a longer one is its own span. Returns at most ``max_spans`` spans (0: no limit).
    """
    groups: list[list[str]] = []
    room = 0
    for whole in split_spans(trace, "full-session"):
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
    """Tokens of a trajectory, cached because a trajectory is used in many episodes."""
    return count_tokens(text)
