"""ALFWorld: text games about a household, each played by an expert and taken down as a trace.

A game is one trace: its one session is the expert's trajectory, labelled with the task type, and its one query is the
task itself. ``trace_id`` is the game's folder relative to the root of all games (:func:`games_root`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memskill_cli.datasets.base import Ask, Manifest, Part, Watch, only
from memskill_cli.datasets.samples import sample_path
from memskill_cli.envs.alfworld import replays
from memskill_cli.envs.alfworld.game_files import (
    SPLITS,
    GameFile,
    Left,
    find,
    fingerprint,
    report,
    split_folders,
    walk_splits,
)
from memskill_cli.envs.alfworld.replays import Replay
from memskill_cli.errors import DataError, GameError, UsageError
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils.files import append_line, read_jsonl

DOWNLOAD = 'pip install "memskill[alfworld]" && alfworld-download, or --source FOLDER, or --sample for the small one'
GOAL = "Your task is to: "
WORKERS = 8
"""Games replayed at a time at most; a worker holds some 150 MB."""


class Alfworld:
    """Reads ALFWorld's games by playing them (https://github.com/alfworld/alfworld)."""

    name = "alfworld"
    trains = True

    def parts(self, source: Path | str | None, ask: Ask) -> list[Part]:
        """One part a split found under ``source``, or else under ALFWORLD_DATA.

        ``source`` may also be a file of trajectories that the published replay script wrote, or a folder of them.
        """
        only(self.name, ask, splits=SPLITS, limit=True)
        if isinstance(source, str):
            raise UsageError(f"{source}: ALFWorld's games are a folder, not an address", hint=DOWNLOAD)
        if source and not split_folders(source) and (own := replays.parts(source, ask, _official_folder())):
            return own
        folder = (source or _official()).resolve()
        found = []
        for split, games in walk_splits(folder, ask.splits):
            content = fingerprint(find(folder, games, ask.limit))
            found.append(Part(str(folder), folder, split=split, limit=ask.limit, fingerprint=content))
        return found

    def read(self, part: Part, watch: Watch) -> Iterator[Trace]:
        """Every game played to success, in order of their ids. One that can't be is skipped and noted.

        What was played is kept in a journal, so that a preparation that was killed goes on where it was.
        """
        assert part.path is not None
        if part.path.is_file():
            yield from map(_of_replay, replays.read(part, watch))
            return
        games = find(part.path, split_folders(part.path)[part.split], part.limit, watch.note)
        journal = watch.scratch / "played.jsonl"
        owed = [game for game in games if game.digest not in {row["digest"] for row in read_jsonl(journal)}]
        watch.progress(len(games) - len(owed), len(games))
        failed = asyncio.run(_play_all(part.path, owed, journal, len(games), watch)) if owed else []
        report(failed, watch.note)
        played = {row["digest"]: row for row in read_jsonl(journal)}
        if not played:
            first = f"{failed[0].game_id}: {failed[0].reason}"
            raise DataError(f"none of {len(games)} games of {part.path} could be played; the first was {first}")
        yield from (_trace(game, part.split, played[game.digest]) for game in games if game.digest in played)


DATASET = Alfworld()


def games_root(manifest: Manifest, split: str) -> Path:
    """The folder that the games of a prepared ``split`` are in. DataError if it is no longer there."""
    source = manifest.parts[split].source
    folder = sample_path("alfworld") if source.startswith("sample:") else Path(source)
    if folder.is_file():
        raise DataError(
            f"only trajectories of {split} were prepared, from {folder}; its games are not on this machine",
            hint="alfworld-download brings them; then prepare again, with --force",
        )
    if not folder.is_dir():
        raise DataError(
            f"{folder}: the games of {split} are no longer there", hint="prepare again from where they are now"
        )
    return folder


def _official() -> Path:
    """Where ``alfworld-download`` puts the games, if it has been run."""
    folder = _official_folder()
    if split_folders(folder):
        return folder
    variable = "ALFWORLD_DATA" if os.environ.get("ALFWORLD_DATA") else "ALFWORLD_DATA is not set, and"
    raise DataError(f"no ALFWorld games: {variable} {folder} holds none", hint=DOWNLOAD)


def _official_folder() -> Path:
    return Path(os.environ.get("ALFWORLD_DATA") or Path.home() / ".cache" / "alfworld").expanduser()


async def _play_all(folder: Path, games: list[GameFile], journal: Path, total: int, watch: Watch) -> list[Left]:
    """Play ``games`` side by side, each a line of ``journal`` when it has been won; those that could not be."""
    from memskill_cli.envs.alfworld.expert import expert
    from memskill_cli.envs.env_pool import GamePool

    workers = min(WORKERS, os.cpu_count() or 1, len(games))
    pool = GamePool(folder, workers=workers)
    done, failed = total - len(games), []

    async def play(game: GameFile) -> None:
        nonlocal done
        try:
            trajectory = await expert(pool, game.game_id)
        except GameError as error:
            failed.append(Left(game.game_id, error.message.removeprefix(f"{game.game_id}: "), broken=True))
        else:
            append_line(journal, {"digest": game.digest, **trajectory._asdict()})
        done += 1
        watch.progress(done, total)

    try:
        async with asyncio.TaskGroup() as group:
            for game in games:
                group.create_task(play(game))
    except ExceptionGroup as several:  # no worker can be had, or the disk is full: the same for all of them
        raise several.exceptions[0] from None
    finally:
        await pool.aclose()
    return sorted(failed)


def _of_replay(replay: Replay) -> Trace:
    return _made(replay.game_id, replay.task_type, replay.split, replay.opening, replay.moves)


def _trace(game: GameFile, split: str, played: dict[str, Any]) -> Trace:
    return _made(game.game_id, game.task_type, split, played["opening"], played["moves"])


def _made(game_id: str, task_type: str, split: str, opening: str, moves: Iterable[tuple[str, str]]) -> Trace:
    goal = opening.rpartition(GOAL)[2].strip()
    turns = [Turn("Goal", goal), Turn("Environment", opening)]
    for command, observation in moves:
        turns += [Turn("Agent", command), Turn("Environment", observation)]
    query = Query(game_id, game_id, task_type, goal, ())
    return Trace(game_id, "alfworld", split, (Session(task_type, "", tuple(turns)),), (query,))
