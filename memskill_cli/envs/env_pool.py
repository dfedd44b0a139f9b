"""Games played side by side in worker processes that live across episodes.

A worker that dies or misses a deadline costs the game that was in it, and nothing else: the next game gets a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from memskill_cli.envs.env_process import Worker, program
from memskill_cli.errors import GameError

GAME_FILE = "game.tw-pddl"
LIFETIME = 100
"""Games that a worker plays before a fresh one takes its place: TextWorld keeps about 1 MB of each game for good."""


class Scene(NamedTuple):
    """What a player sees after a command (or at the beginning)."""

    observation: str
    commands: tuple[str, ...]
    """Every admissible command, sorted."""
    inventory: str
    won: bool
    done: bool


class Game(Protocol):
    """A game being played."""

    @property
    def scene(self) -> Scene:
        """The latest scene."""
        ...

    async def play(self, command: str) -> Scene:
        """Play ``command``; one that is not admissible changes nothing. GameError if the game cannot go on."""
        ...


class PooledGame:
    """A game in a worker."""

    def __init__(self, worker: Worker, game_id: str, scene: Scene, deadline: float) -> None:
        self._worker, self._id, self._deadline = worker, game_id, deadline
        self.scene = scene

    async def play(self, command: str) -> Scene:
        self.scene = _scene(await self._worker.ask("play", command, self._deadline, self._id))
        return self.scene

    async def walkthrough(self) -> list[str]:
        """The winning commands stored with the game; none if it has none."""
        return list(await self._worker.ask("walkthrough", "", self._deadline, self._id))

    async def plan(self, deadline: float) -> list[str]:
        """Winning commands from here on, by the planner; none if it finds none. It has ``deadline`` seconds."""
        return list(await self._worker.ask("plan", "", deadline, self._id))


class GamePool:
    """Up to ``workers`` games of the folder ``root`` at a time, in as many processes, started when first needed.

    ``deadline`` is the seconds a worker may take for one request. A pool belongs to one event loop and must be closed
    in it. ``command`` starts a worker; left out, it is ours, and DataError says what to install if it can't be had.
    """

    def __init__(
        self,
        root: Path,
        *,
        workers: int,
        deadline: float = 60.0,
        notice: Callable[[str], None] = lambda text: None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.root = root.resolve()
        self._command = tuple(command or program())
        self._deadline, self._notice = deadline, notice
        self._free = asyncio.Semaphore(workers)
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    @asynccontextmanager
    async def game(self, game_id: str) -> AsyncIterator[PooledGame]:
        """Play ``game_id`` (its folder, relative to ``root``) from the beginning; waits until a worker is free.

        GameError, from here or from playing, says that this game is over; the pool goes on.
        """
        file = self._file(game_id)
        async with self._free:
            worker = self._idle.pop() if self._idle else await self._hire()
            try:
                worker.games += 1
                scene = _scene(await worker.ask("start", str(file), self._deadline, game_id))
                yield PooledGame(worker, game_id, scene, self._deadline)
            finally:
                await self._release(worker)

    async def aclose(self) -> None:
        """End every worker, also those in the middle of a game."""
        await asyncio.gather(*(worker.kill() for worker in self._all))
        self._all.clear()
        self._idle.clear()

    def _file(self, game_id: str) -> Path:
        """The game's file; GameError for a path that leaves ``root`` or leads to no game."""
        file = (self.root / game_id / GAME_FILE).resolve()
        if PurePosixPath(game_id).is_absolute() or not file.is_relative_to(self.root):
            raise GameError(f"{game_id}: not a game in {self.root}", kind="broken")
        if not file.is_file():
            raise GameError(f"{game_id}: no {GAME_FILE} in {self.root}", kind="broken")
        return file

    async def _hire(self) -> Worker:
        worker = await Worker.start(self._command, self.root)
        self._all.add(worker)
        return worker

    async def _release(self, worker: Worker) -> None:
        if worker.usable and worker.games < LIFETIME:
            self._idle.append(worker)
            return
        if not worker.usable:
            self._notice("a game process was ended; the next game gets a new one")
        await worker.kill()
        self._all.discard(worker)


def _scene(reply: Any) -> Scene:
    return Scene(reply["observation"], tuple(reply["commands"]), reply["inventory"], reply["won"], reply["done"])
