"""Trajectories that the replay script of the published code (MemSkill, arXiv 2602.02474) has written.

One JSON file a split: ``{task type: {path of the game: {"steps": [...], "total_reward": 1.0, ...}}}``. A step has
``action`` (null in the first), ``observation``, ``reward`` and ``done``; a game that could not be played has ``error``.
They take the place of replaying the games. The games themselves are needed still, to be played.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from memskill_cli.datasets.base import Ask, Part, Watch
from memskill_cli.envs.alfworld.game_files import GAME_FILE, SPLITS, TASK_TYPES
from memskill_cli.errors import DataError, UsageError

_OPENING = {"start_map", "start_array"}
_CLOSING = {"end_map", "end_array"}
_HINT = "expected is what the published alfworld_replay.py writes: {task type: {game: {steps, total_reward, …}}}"


class Replay(NamedTuple):
    """One game as the script played it. ``root`` is the folder of all games as it was on that machine."""

    task_type: str
    game_id: str
    split: str
    root: str
    opening: str
    moves: list[tuple[str, str]]


class _Left(Exception):
    """A game that is left out; the text says why."""


def parts(source: Path, ask: Ask, official: Path) -> list[Part]:
    """One part for each file of trajectories at ``source``; none if there is no such file.

    ``official`` is where ALFWorld's games are expected if they are not where the script found them.
    """
    files = [source] if source.is_file() else sorted(source.glob("*.json"))
    found: dict[str, Part] = {}
    for file in files:
        first = _first(file)
        if first is None and source.is_file():
            raise DataError(f"{file}: no trajectory in it that was won", hint=_HINT)
        if first is None or (ask.splits and first.split not in ask.splits):
            continue
        if first.split in found:
            raise UsageError(f"{source}: two files have {first.split}", hint="--source FILE.json names one of them")
        games = _games(first, official)
        found[first.split] = Part(str(games or file), file, split=first.split, limit=ask.limit)
    return list(found.values())


def read(part: Part, watch: Watch) -> list[Replay]:
    """The trajectories of a part that were won, in order of their games' ids; what is left out is noted.

    With a limit, task types take turns until it is reached, as for games that are replayed here.
    """
    assert part.path is not None
    won: dict[str, Replay] = {}
    left: Counter[str] = Counter()
    for entry in _entries(part.path):
        try:
            replay = _replay(*entry)
            if replay.split != part.split:
                raise _Left(f"of {replay.split}")
            won[replay.game_id] = replay
        except _Left as why:
            left[str(why)] += 1
    for reason, count in sorted(left.items()):
        watch.note(f"{count} trajectories left out: {reason}")
    if not won:
        raise DataError(f"{part.path}: no trajectory of {part.split} in it that was won", hint=_HINT)
    return sorted(_some(list(won.values()), part.limit), key=lambda replay: replay.game_id)


def _some(replays: list[Replay], limit: int) -> list[Replay]:
    if not limit:
        return replays
    by_type: dict[str, list[Replay]] = {}
    for replay in sorted(replays, key=lambda replay: replay.game_id):
        by_type.setdefault(replay.task_type, []).append(replay)
    turns = sorted((turn, replay) for kind in by_type.values() for turn, replay in enumerate(kind))
    return [replay for _, replay in turns[:limit]]


def _first(file: Path) -> Replay | None:
    """The first trajectory of ``file`` that was won; None if it has none, or is another kind of file."""
    try:
        for entry in _entries(file):
            try:
                return _replay(*entry)
            except _Left:
                continue
    except DataError:
        return None
    return None


def _games(replay: Replay, official: Path) -> Path | None:
    """The folder of all games: where the script found it, or the official one; None if the game is in neither."""
    for root in (Path(replay.root), official):
        if (root / replay.game_id / GAME_FILE).is_file():
            return root.resolve()
    return None


def _replay(task_type: str, game: str, entry: Any) -> Replay:
    if task_type not in TASK_TYPES:
        raise _Left(f"task type {task_type[:60]}")
    if not isinstance(entry, dict) or not isinstance(entry.get("steps"), list) or entry.get("error"):
        raise _Left("could not be played")
    if entry.get("total_reward") != 1.0:
        raise _Left("not won")
    root, game_id, split = _place(game)
    try:
        opening, *moves = [(step["action"], step["observation"].strip()) for step in entry["steps"]]
        told = [(action.strip(), observation) for action, observation in moves]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _Left("its steps are incomplete") from None
    if not told or not opening[1]:
        raise _Left("its steps are incomplete")
    return Replay(task_type, game_id, split, root, opening[1], told)


def _place(game: str) -> tuple[str, str, str]:
    """(root of all games, id of the game, split) from the path of a game file, as it was on the script's machine."""
    folder = PurePosixPath(game.replace("\\", "/"))
    folder = folder.parent if folder.name == GAME_FILE else folder
    places = [place for place, name in enumerate(folder.parts) if name in SPLITS]
    if not places or places[-1] == len(folder.parts) - 1:
        raise _Left("its path names no split")
    split_at = places[-1]
    start = split_at - 1 if split_at and folder.parts[split_at - 1].startswith("json_") else split_at
    return os.path.join(*folder.parts[:start]) if start else "", "/".join(folder.parts[start:]), folder.parts[split_at]


def _entries(file: Path) -> Iterator[tuple[str, str, Any]]:
    """(task type, game, entry) one by one, never the file as a whole. DataError if it is no such JSON."""
    import ijson

    depth, kind, game, builder = 0, "", "", None
    with file.open("rb") as opened:
        try:
            for event, value in ijson.basic_parse(opened, use_float=True):
                if builder is None and event == "map_key":
                    kind, game = (value, game) if depth == 1 else (kind, value)
                    builder = ijson.ObjectBuilder() if depth == 2 else None
                    continue
                if builder is None and depth < 2 and event not in ("start_map", "end_map"):
                    raise DataError(f"{file}: not trajectories of ALFWorld", hint=_HINT)
                if builder is not None:
                    builder.event(event, value)
                depth += (event in _OPENING) - (event in _CLOSING)
                if builder is not None and depth == 2:
                    yield kind, game, builder.value
                    builder = None
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise DataError(f"{file}: not JSON: {reason}", hint=_HINT) from None
