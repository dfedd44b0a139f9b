"""Find the games in ALFWorld's folder, and select those that the method uses."""

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
"""Most broken games that are named; the others are only counted."""


class GameFile(NamedTuple):
    """A game to play. ``game_id`` is its folder, relative to the root folder; ``digest`` is the sha256 of its file."""

    game_id: str
    task_type: str
    digest: str


class SkippedGame(NamedTuple):
    """A game that is left out, and the reason."""

    game_id: str
    reason: str
    broken: bool = False


def split_folders(root: Path) -> dict[str, Path]:
    """The existing folders of splits in ``root`` (the folder in ALFWORLD_DATA, or its ``json_*``), by split."""
    homes = [root, *sorted(root.glob("json_*"), reverse=True)]
    found = {split: next((home / split for home in homes if (home / split).is_dir()), None) for split in SPLITS}
    return {split: folder for split, folder in found.items() if folder}


def find(root: Path, folder: Path, limit: int, note: Note = lambda text: None) -> list[GameFile]:
    """The games of a split, sorted by id; ``note`` gets what is left out.

    With a ``limit``, games are taken from the task types in turn, so that a small number still has every type. Raises
    DataError if there are no games.
    """
    games: dict[str, list[GameFile]] = {}
    skipped = []
    for file in sorted(folder.rglob(GAME_FILE)):
        entry = _inspect(root, file)
        if isinstance(entry, SkippedGame):
            skipped.append(entry)
        else:
            games.setdefault(entry.task_type, []).append(entry)
    report(skipped, note)
    if not games:
        raise DataError(f"{folder}: no playable game", hint="get the official games with alfworld-download")
    turns = sorted((turn, game) for kind in games.values() for turn, game in enumerate(kind))
    return sorted(game for _, game in turns[: limit or None])


def fingerprint(games: Iterable[GameFile]) -> str:
    """A sha256 of the ids and contents of the games."""
    lines = (f"{game.digest} {game.game_id}\n" for game in games)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def report(skipped: Iterable[SkippedGame], note: Note) -> None:
    """Note what is left out: counts by reason, and broken games by name."""
    skipped = list(skipped)
    for reason, count in sorted(Counter(entry.reason for entry in skipped if not entry.broken).items()):
        note(f"{count} games left out: {reason}")
    broken = [entry for entry in skipped if entry.broken]
    for entry in broken[:NOTED]:
        note(f"skipped {entry.game_id}: {entry.reason}")
    if len(broken) > NOTED:
        note(f"skipped {len(broken) - NOTED} more that cannot be played")


def _inspect(root: Path, file: Path) -> GameFile | SkippedGame:
    game_id = file.parent.relative_to(root).as_posix()
    if "movable" in game_id or "Sliced" in game_id:
        return SkippedGame(game_id, "movable receptacles or sliced objects")
    try:
        data = file.read_bytes()
        task_type = str(_table(file.parent / "traj_data.json", "task_type")["task_type"])
        game = _table(file, "pddl_problem", data)
    except (OSError, ValueError) as error:
        return SkippedGame(game_id, str(error), broken=True)
    if task_type not in TASK_TYPES:
        return SkippedGame(game_id, f"task type {task_type[:60]}")
    if not game.get("solvable"):
        return SkippedGame(game_id, "not known to be solvable")
    return GameFile(game_id, task_type, hashlib.sha256(data).hexdigest())


def _table(file: Path, field: str, data: bytes | None = None) -> dict[str, Any]:
    """The JSON object in ``file``. Raises ValueError if it is not one, or has no ``field``."""
    try:
        table = orjson.loads(file.read_bytes() if data is None else data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{file.name} is cut off or damaged: {error}") from None
    if not isinstance(table, dict) or field not in table:
        raise ValueError(f"{file.name} has no {field}")
    return table


def walk_splits(root: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """(split, folder) of the ``wanted`` splits, or of all. Raises DataError for a split that ``root`` does not have."""
    folders = split_folders(root)
    if not folders:
        raise DataError(
            f"{root}: no folder {', '.join(SPLITS[:2])} or {SPLITS[2]} in it or in its json_2.1.1",
            hint="give the folder that ALFWORLD_DATA names, filled by alfworld-download",
        )
    for split in wanted or folders:
        if split not in folders:
            raise DataError(f"{root}: has no {split}", hint=f"there is {', '.join(folders)}")
        yield split, folders[split]
