"""Play games concurrently in worker processes, which are reused between games.

If a worker dies or exceeds its time limit, only its current game fails; the next game gets a new worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from memskill_cli.envs.env_process import EnvProcess, program
from memskill_cli.envs.environment import DEFAULT, Observation, environment
from memskill_cli.errors import GameError

LIFETIME = 100
"""Games per worker before it is replaced. TextWorld leaks about 1 MB per game."""


class TextEnv(Protocol):
    """A game being played."""

    @property
    def observation(self) -> Observation:
        """The latest observation."""
        ...

    async def play(self, command: str) -> Observation:
        """Play ``command``; an inadmissible one changes nothing. Raises GameError if the game cannot continue."""
        ...


class PooledEnv:
    """A game in a worker."""

    def __init__(self, worker: EnvProcess, game_id: str, observation: Observation, deadline: float) -> None:
        self._worker, self._id, self._deadline = worker, game_id, deadline
        self.observation = observation

    async def play(self, command: str) -> Observation:
        self.observation = _to_observation(await self._worker.ask("play", command, self._deadline, self._id))
        return self.observation

    async def walkthrough(self) -> list[str]:
        """The winning commands stored with the game; empty if there are none."""
        return list(await self._worker.ask("walkthrough", "", self._deadline, self._id))

    async def plan(self, deadline: float) -> list[str]:
        """Winning commands from the current state, found by the planner within ``deadline`` seconds; else empty."""
        return list(await self._worker.ask("plan", "", deadline, self._id))


class EnvPool:
    """Plays up to ``workers`` games of the folder ``root`` at a time. Processes start when they are first needed.

    ``deadline`` is the time limit of a request in seconds. A pool belongs to one event loop and must be closed in it.
    ``command`` starts a worker; by default it is that of the environment ``name``. Raises DataError, with the package
    to install, if the environment is not available.
    """

    def __init__(
        self,
        root: Path,
        *,
        workers: int,
        deadline: float = 60.0,
        notice: Callable[[str], None] = lambda text: None,
        command: Sequence[str] | None = None,
        name: str = DEFAULT,
    ) -> None:
        self.root = root.resolve()
        self._environment = environment(name)
        self._command = tuple(command or program(name))
        self._deadline, self._notice = deadline, notice
        self._free = asyncio.Semaphore(workers)
        self._idle: list[EnvProcess] = []
        self._all: set[EnvProcess] = set()

    @asynccontextmanager
    async def open_task(self, game_id: str) -> AsyncIterator[PooledEnv]:
        """Start ``game_id`` (its folder, relative to ``root``) from the beginning; waits until a worker is free.

        Raises GameError if the game fails, also later while it is played; the pool remains usable.
        """
        file = self._file(game_id)
        async with self._free:
            worker = self._idle.pop() if self._idle else await self._start_worker()
            try:
                worker.games += 1
                observation = _to_observation(await worker.ask("start", str(file), self._deadline, game_id))
                yield PooledEnv(worker, game_id, observation, self._deadline)
            finally:
                await self._release(worker)

    async def aclose(self) -> None:
        """Kill every worker, also those that play a game."""
        await asyncio.gather(*(worker.kill() for worker in self._all))
        self._all.clear()
        self._idle.clear()

    def _file(self, game_id: str) -> Path:
        """The game's file. Raises GameError for a path outside ``root`` or without a game."""
        name = self._environment.task_file
        file = (self.root / game_id / name).resolve()
        if PurePosixPath(game_id).is_absolute() or not file.is_relative_to(self.root):
            raise GameError(f"{game_id}: not a game in {self.root}", kind="broken")
        if not file.is_file():
            raise GameError(f"{game_id}: no {name or 'such file'} in {self.root}", kind="broken")
        return file

    async def _start_worker(self) -> EnvProcess:
        worker = await EnvProcess.start(self._command, self.root, self._environment.install)
        self._all.add(worker)
        return worker

    async def _release(self, worker: EnvProcess) -> None:
        if worker.usable and worker.games < LIFETIME:
            self._idle.append(worker)
            return
        if not worker.usable:
            self._notice("a game process was killed or died; the next game gets a new one")
        await worker.kill()
        self._all.discard(worker)


def _to_observation(reply: Any) -> Observation:
    return Observation(reply["observation"], tuple(reply["commands"]), reply["inventory"], reply["won"], reply["done"])
