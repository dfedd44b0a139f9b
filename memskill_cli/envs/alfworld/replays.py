"""Read trajectories from the replay script of the published code (MemSkill, arXiv 2602.02474).

One JSON file per split: ``{task type: {path of the game: {"steps": [...], "total_reward": 1.0, ...}}}``. A step has
``action`` (null in the first), ``observation``, ``reward`` and ``done``; a game that could not be played has ``error``.
With these files ``prepare`` need not replay the games. The games are still needed to play tasks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from memskill_cli.datasets.base import PrepareOptions, ReaderCallbacks, SourceFile
from memskill_cli.envs.alfworld.game_files import GAME_FILE, SPLITS, TASK_TYPES
from memskill_cli.errors import DataError, UsageError

_OPENING = {"start_map", "start_array"}
_CLOSING = {"end_map", "end_array"}
_HINT = "expected the format of the published alfworld_replay.py: {task type: {game: {steps, total_reward, …}}}"


class Replay(NamedTuple):
    """A game played by the script. ``root`` is the root folder of all games on the script's machine."""

    task_type: str
    game_id: str
    split: str
    root: str
    opening: str
    moves: list[tuple[str, str]]


class _SkippedReplay(Exception):
    """The game is left out; the text is the reason."""


def parts(source: Path, ask: PrepareOptions, official: Path) -> list[SourceFile]:
    """One part per trajectory file at ``source``; none if there is no such file.

    ``official`` is the folder of ALFWorld's games, used if they are not in the script's folder. Raises DataError for a
    file without a won trajectory, UsageError if two files have one split.
    """
    files = [source] if source.is_file() else sorted(source.glob("*.json"))
    found: dict[str, SourceFile] = {}
    for file in files:
        first = _first(file)
        if first is None and source.is_file():
            raise DataError(f"{file}: has no won trajectory", hint=_HINT)
        if first is None or (ask.splits and first.split not in ask.splits):
            continue
        if first.split in found:
            raise UsageError(
                f"{source}: two files have {first.split}", hint="select one of them with --source FILE.json"
            )
        games = _games(first, official)
        found[first.split] = SourceFile(str(games or file), file, split=first.split, limit=ask.limit)
    return list(found.values())


def read(part: SourceFile, watch: ReaderCallbacks) -> list[Replay]:
    """The won trajectories of a part, sorted by game id; others are counted in notes.

    With a limit, trajectories are taken from the task types in turn, as for games. Raises DataError if there are none.
    """
    assert part.path is not None
    won: dict[str, Replay] = {}
    skipped: Counter[str] = Counter()
    for entry in _entries(part.path):
        try:
            replay = _replay(*entry)
            if replay.split != part.split:
                raise _SkippedReplay(f"of {replay.split}")
            won[replay.game_id] = replay
        except _SkippedReplay as reason:
            skipped[str(reason)] += 1
    for text, count in sorted(skipped.items()):
        watch.note(f"{count} trajectories left out: {text}")
    if not won:
        raise DataError(f"{part.path}: has no won trajectory of {part.split}", hint=_HINT)
    return sorted(_limited(list(won.values()), part.limit), key=lambda replay: replay.game_id)


def _limited(replays: list[Replay], limit: int) -> list[Replay]:
    if not limit:
        return replays
    by_type: dict[str, list[Replay]] = {}
    for replay in sorted(replays, key=lambda replay: replay.game_id):
        by_type.setdefault(replay.task_type, []).append(replay)
    turns = sorted((turn, replay) for kind in by_type.values() for turn, replay in enumerate(kind))
    return [replay for _, replay in turns[:limit]]


def _first(file: Path) -> Replay | None:
    """The first won trajectory of ``file``; None if there is none, or if it is another kind of file."""
    try:
        for entry in _entries(file):
            try:
                return _replay(*entry)
            except _SkippedReplay:
                continue
    except DataError:
        return None
    return None


def _games(replay: Replay, official: Path) -> Path | None:
    """The root folder of the games: the script's, or the official one; None if the game is in neither."""
    for root in (Path(replay.root), official):
        if (root / replay.game_id / GAME_FILE).is_file():
            return root.resolve()
    return None


def _replay(task_type: str, game: str, entry: Any) -> Replay:
    if task_type not in TASK_TYPES:
        raise _SkippedReplay(f"task type {task_type[:60]}")
    if not isinstance(entry, dict) or not isinstance(entry.get("steps"), list) or entry.get("error"):
        raise _SkippedReplay("could not be played")
    if entry.get("total_reward") != 1.0:
        raise _SkippedReplay("not won")
    root, game_id, split = _parse_path(game)
    try:
        opening, *moves = [(step["action"], step["observation"].strip()) for step in entry["steps"]]
        pairs = [(action.strip(), observation) for action, observation in moves]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _SkippedReplay("its steps are incomplete") from None
    if not pairs or not opening[1]:
        raise _SkippedReplay("its steps are incomplete")
    return Replay(task_type, game_id, split, root, opening[1], pairs)


def _parse_path(game: str) -> tuple[str, str, str]:
    """(root folder, game id, split) from the path of a game file on the script's machine."""
    folder = PurePosixPath(game.replace("\\", "/"))
    folder = folder.parent if folder.name == GAME_FILE else folder
    indices = [index for index, name in enumerate(folder.parts) if name in SPLITS]
    if not indices or indices[-1] == len(folder.parts) - 1:
        raise _SkippedReplay("its path names no split")
    split_at = indices[-1]
    start = split_at - 1 if split_at and folder.parts[split_at - 1].startswith("json_") else split_at
    return os.path.join(*folder.parts[:start]) if start else "", "/".join(folder.parts[start:]), folder.parts[split_at]


def _entries(file: Path) -> Iterator[tuple[str, str, Any]]:
    """Stream (task type, game, entry) without loading the whole file. Raises DataError for another format."""
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
