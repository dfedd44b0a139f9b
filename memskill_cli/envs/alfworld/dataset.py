"""ALFWorld: household text games. Each game is played by an expert and recorded as a trace.

A trace has one session, the expert's trajectory, labelled with the task type, and one query, the task. ``trace_id`` is
the game's folder relative to the root folder of all games (:func:`env_root`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memskill_cli.datasets.base import (
    SPAN_SETTINGS,
    Dataset,
    PrepareOptions,
    ReaderCallbacks,
    SourceFile,
    reject_unsupported,
)
from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.datasets.paper import LLAMA, QWEN, PaperResults, other_row, paper_row
from memskill_cli.datasets.samples import sample_path
from memskill_cli.envs.alfworld import replays
from memskill_cli.envs.alfworld.game_files import (
    SPLITS,
    GameFile,
    SkippedGame,
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
"""Most games replayed at a time; a worker uses about 150 MB."""


PAPER = PaperResults(
    results=(
        paper_row("valid_seen", LLAMA, 5, success_rate=47.86, steps=30.88),
        paper_row("valid_seen", QWEN, 5, success_rate=60.00, steps=24.54),
        paper_row("valid_unseen", LLAMA, 5, success_rate=47.01, steps=30.43),
        paper_row("valid_unseen", QWEN, 5, success_rate=64.18, steps=23.57),
        other_row("CoN, the best other system", "valid_seen", success_rate=40.71),
        other_row("ReadAgent, the best other system", "valid_unseen", success_rate=38.06),
    ),
    scored={"valid_seen": 140, "valid_unseen": 134},
    trained_on="alfworld",
    setting={
        "env.memory": (
            "all",
            "each task type has its own memory, in the paper one memory has all trajectories",
        )
    },
)
PAPER_SETTINGS = {
    "train.batch_size": 16,
    "env.trajectories_min": 40,
    "env.trajectories_max": 60,
    "env.tasks_min": 5,
    "env.tasks_max": 5,
    "env.same_type": 1.0,
    "env.memory": "all",
    "env.temperature": 0.0,
    "env.top_p": 1.0,
    "env.inventory": True,
    "env.steps": 50,
}
"""All published values, so that they replace the values of a run."""
# Hybrid retrieval, sources and protection were measured on conversations only (docs/retrieval.md).
MEMORY_SETTINGS = {
    "memory.retriever": "dense",
    "memory.sources": False,
    "memory.context_tokens": 0,
    "memory.resolve_dates": False,
    "memory.protect": False,
}
SETTINGS = {
    **SPAN_SETTINGS,
    **MEMORY_SETTINGS,
    "eval.num_skills": 5,
    "models.answer_max_tokens": 32,
    "train.chunk_size": 2048,
}
PRESETS: dict[str, dict[str, Any]] = {
    # Each step is a model call. The embedded model rarely needs more steps to succeed, so 50 would cost only time.
    "demo": {"env.steps": 12, "env.workers": 2},
    "paper": PAPER_SETTINGS,
}


class Alfworld(Dataset):
    """ALFWorld's games; reading a game plays it (https://github.com/alfworld/alfworld)."""

    name = "alfworld"
    kind = "env"
    default_split = "valid_seen"
    settings = SETTINGS
    presets = PRESETS
    environment = "alfworld"
    prompt_style = "embodied"
    paper_results = PAPER

    def parts(self, source: Path | str | None, ask: PrepareOptions) -> list[SourceFile]:
        """One part per split found in ``source``, by default in ALFWORLD_DATA.

        ``source`` may also be a trajectory file of the published replay script, or a folder of such files.
        """
        reject_unsupported(self.name, ask, splits=SPLITS, limit=True)
        if isinstance(source, str):
            raise UsageError(f"{source}: ALFWorld's games are a folder, not a URL", hint=DOWNLOAD)
        if source and not split_folders(source) and (own := replays.parts(source, ask, _official_folder())):
            return own
        folder = (source or _official_games()).resolve()
        found = []
        for split, games in walk_splits(folder, ask.splits):
            content = fingerprint(find(folder, games, ask.limit))
            found.append(SourceFile(str(folder), folder, split=split, limit=ask.limit, fingerprint=content))
        return found

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        """A trace per game that an expert wins, in order of ids. Other games are skipped, with a note.

        Played games are recorded in a journal, so that a killed ``prepare`` continues where it was. Raises DataError if
        no game could be played.
        """
        assert part.path is not None
        if part.path.is_file():
            yield from map(_trace_of_replay, replays.read(part, watch))
            return
        games = find(part.path, split_folders(part.path)[part.split], part.limit, watch.note)
        journal = watch.scratch / "played.jsonl"
        pending = [game for game in games if game.digest not in {row["digest"] for row in read_jsonl(journal)}]
        watch.progress(len(games) - len(pending), len(games))
        failed = asyncio.run(_play_all(part.path, pending, journal, len(games), watch)) if pending else []
        report(failed, watch.note)
        played = {row["digest"]: row for row in read_jsonl(journal)}
        if not played:
            first = f"{failed[0].game_id}: {failed[0].reason}"
            raise DataError(f"none of {len(games)} games of {part.path} could be played; the first was {first}")
        yield from (_trace_of_game(game, part.split, played[game.digest]) for game in games if game.digest in played)

    def env_root(self, manifest: DatasetManifest, split: str) -> Path:
        """See :class:`~memskill_cli.datasets.base.Dataset`."""
        return env_root(manifest, split)


DATASET = Alfworld()


def env_root(manifest: DatasetManifest, split: str) -> Path:
    """The root folder of the games of a prepared ``split``. Raises DataError if it does not exist any more."""
    source = manifest.parts[split].source
    folder = sample_path("alfworld") if source.startswith("sample:") else Path(source)
    if folder.is_file():
        raise DataError(
            f"only trajectories of {split} were prepared, from {folder}; its games are not on this machine",
            hint="get them with alfworld-download; then prepare again with --force",
        )
    if not folder.is_dir():
        raise DataError(
            f"{folder}: the games of {split} are missing", hint="prepare again with --source and their current folder"
        )
    return folder


def _official_games() -> Path:
    """The folder of ``alfworld-download``. Raises DataError if it has no games."""
    folder = _official_folder()
    if split_folders(folder):
        return folder
    variable = "ALFWORLD_DATA" if os.environ.get("ALFWORLD_DATA") else "ALFWORLD_DATA is not set, and"
    raise DataError(f"no ALFWorld games: {variable} {folder} has none", hint=DOWNLOAD)


def _official_folder() -> Path:
    return Path(os.environ.get("ALFWORLD_DATA") or Path.home() / ".cache" / "alfworld").expanduser()


async def _play_all(
    folder: Path, games: list[GameFile], journal: Path, total: int, watch: ReaderCallbacks
) -> list[SkippedGame]:
    """Play ``games`` concurrently and append each won game to ``journal``. Returns the games that failed."""
    from memskill_cli.envs.alfworld.expert import play_expert
    from memskill_cli.envs.env_pool import EnvPool

    workers = min(WORKERS, os.cpu_count() or 1, len(games))
    pool = EnvPool(folder, workers=workers)
    done, failed = total - len(games), []

    async def play(game: GameFile) -> None:
        nonlocal done
        try:
            trajectory = await play_expert(pool, game.game_id)
        except GameError as error:
            failed.append(SkippedGame(game.game_id, error.message.removeprefix(f"{game.game_id}: "), broken=True))
        else:
            append_line(journal, {"digest": game.digest, **trajectory._asdict()})
        done += 1
        watch.progress(done, total)

    try:
        async with asyncio.TaskGroup() as group:
            for game in games:
                group.create_task(play(game))
    except ExceptionGroup as several:  # workers do not start, or the disk is full: the same error for all
        raise several.exceptions[0] from None
    finally:
        await pool.aclose()
    return sorted(failed)


def _trace_of_replay(replay: Replay) -> Trace:
    return _to_trace(replay.game_id, replay.task_type, replay.split, replay.opening, replay.moves)


def _trace_of_game(game: GameFile, split: str, played: dict[str, Any]) -> Trace:
    return _to_trace(game.game_id, game.task_type, split, played["opening"], played["moves"])


def _to_trace(game_id: str, task_type: str, split: str, opening: str, moves: Iterable[tuple[str, str]]) -> Trace:
    goal = opening.rpartition(GOAL)[2].strip()
    turns = [Turn("Goal", goal), Turn("Environment", opening)]
    for command, observation in moves:
        turns += [Turn("Agent", command), Turn("Environment", observation)]
    query = Query(game_id, game_id, task_type, goal, ())
    return Trace(game_id, "alfworld", split, (Session(task_type, "", tuple(turns)),), (query,))
