"""ALFWorld's folder: which games it holds, and which of them the method plays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from memskill_cli.datasets.base import Note
from memskill_cli.errors import DataError

SPLITS = ("train", "valid_seen", "valid_unseen")
TASK_TYPES = (
    "look_at_obj_in_light",
    "pick_and_place_simple",
    "pick_clean_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_two_obj_and_place",
)
GAME_FILE = "game.tw-pddl"
NOTED = 20
"""Broken games that are named one by one; the rest are counted."""


class GameFile(NamedTuple):
    """One game that is to be played. ``game_id`` is its folder, relative to the root of all."""

    game_id: str
    task_type: str
    digest: str


class Left(NamedTuple):
    """One game that is left out, and why."""

    game_id: str
    reason: str
    broken: bool = False


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits that ``root`` (what ALFWORLD_DATA names, or the folder within) has, by split."""
    homes = [root, *sorted(root.glob("json_*"), reverse=True)]
    found = {split: next((home / split for home in homes if (home / split).is_dir()), None) for split in SPLITS}
    return {split: folder for split, folder in found.items() if folder}


def find(root: Path, folder: Path, limit: int, note: Note = lambda text: None) -> list[GameFile]:
    """The games of a split, in order of their ids; what is left out goes to ``note``.

    With a ``limit``, task types take turns until it is reached, so that a few games are still of every type.
    DataError if there is none.
    """
    games: dict[str, list[GameFile]] = {}
    left = []
    for file in sorted(folder.rglob(GAME_FILE)):
        entry = _look(root, file)
        if isinstance(entry, Left):
            left.append(entry)
        else:
            games.setdefault(entry.task_type, []).append(entry)
    report(left, note)
    if not games:
        raise DataError(f"{folder}: no game that can be played", hint="alfworld-download brings the official games")
    turns = sorted((turn, game) for kind in games.values() for turn, game in enumerate(kind))
    return sorted(game for _, game in turns[: limit or None])


def fingerprint(games: Iterable[GameFile]) -> str:
    """Names the games by content."""
    lines = (f"{game.digest} {game.game_id}\n" for game in games)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def report(left: Iterable[Left], note: Note) -> None:
    """Say what is left out: reasons with their counts, broken games by name."""
    left = list(left)
    for reason, count in sorted(Counter(entry.reason for entry in left if not entry.broken).items()):
        note(f"{count} games left out: {reason}")
    broken = [entry for entry in left if entry.broken]
    for entry in broken[:NOTED]:
        note(f"skipped {entry.game_id}: {entry.reason}")
    if len(broken) > NOTED:
        note(f"skipped {len(broken) - NOTED} more that cannot be played")


def _look(root: Path, file: Path) -> GameFile | Left:
    game_id = file.parent.relative_to(root).as_posix()
    if "movable" in game_id or "Sliced" in game_id:
        return Left(game_id, "movable receptacles or sliced objects")
    try:
        data = file.read_bytes()
        task_type = str(_table(file.parent / "traj_data.json", "task_type")["task_type"])
        game = _table(file, "pddl_problem", data)
    except (OSError, ValueError) as error:
        return Left(game_id, str(error), broken=True)
    if task_type not in TASK_TYPES:
        return Left(game_id, f"task type {task_type[:60]}")
    if not game.get("solvable"):
        return Left(game_id, "not known to be solvable")
    return GameFile(game_id, task_type, hashlib.sha256(data).hexdigest())


def _table(file: Path, field: str, data: bytes | None = None) -> dict[str, Any]:
    """The JSON object of ``file``; ValueError if it is none, or has no ``field``."""
    try:
        table = orjson.loads(file.read_bytes() if data is None else data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{file.name} is cut off or damaged: {error}") from None
    if not isinstance(table, dict) or field not in table:
        raise ValueError(f"{file.name} has no {field}")
    return table


def walk_splits(root: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """(split, folder) of what is ``wanted``, or of all there is. DataError for one that ``root`` lacks."""
    folders = split_folders(root)
    if not folders:
        raise DataError(
            f"{root}: no folder {', '.join(SPLITS[:2])} or {SPLITS[2]} in it, nor in a json_2.1.1 below it",
            hint="give the folder that ALFWORLD_DATA names, as alfworld-download fills it",
        )
    for split in wanted or folders:
        if split not in folders:
            raise DataError(f"{root}: has no {split}", hint=f"there is {', '.join(folders)}")
        yield split, folders[split]
