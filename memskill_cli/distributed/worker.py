"""Who does jobs on a node of a cluster: one process with one event loop, in which many traces wait side by side.

Nothing here knows of Ray, which makes an actor of it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from memskill_cli import __version__
from memskill_cli.distributed.proxies import Charter, DeskPlan, Line
from memskill_cli.distributed.rpc import Correspondent, Office
from memskill_cli.errors import MemskillError
from memskill_cli.utils import devices


class Introduction(NamedTuple):
    """Who has come to work; ``fault`` says why they cannot, "" if they can."""

    version: str
    where: str
    fault: str


class Outcome(NamedTuple):
    """What became of a job: its value, or an error of ours."""

    value: Any = None
    error: MemskillError | None = None


class CrewPlan(NamedTuple):
    """What a worker opens once for all jobs of a crew."""

    kit: Any
    desk: DeskPlan


class _Open(NamedTuple):
    opened: Any
    desk: Any
    stack: AsyncExitStack


class Worker:
    """Lives in the event loop of a Ray actor; ``name`` is that of its box, ``dumps`` pickles its letters."""

    def __init__(self, name: str, office: Office, charter: Charter, dumps: Callable[[Any], bytes]) -> None:
        self._name, self._office, self._charter, self._dumps = name, office, charter, dumps
        self._crews: dict[str, asyncio.Task[_Open]] = {}

    async def begin(self) -> Introduction:
        devices.torch_in_one_thread()  # as wherever a controller is used: last bits depend on it
        where, games = f"{socket.gethostname()} (process {os.getpid()})", self._charter.games
        if games and not games.root.is_dir():
            return Introduction(__version__, where, f"{where} has no folder {games.root}, where the games are")
        mail = Correspondent(self._name, self._office, {}, self._dumps)
        self._line, self._world = Line(mail), self._charter.world(mail)
        self._serving = asyncio.create_task(mail.serve())
        return Introduction(__version__, where, "")

    async def run(self, crew: str, plan: list[Awaitable[bytes]], job: bytes) -> Outcome:
        """Do a job of a crew. ``plan`` is in a list so that Ray does not fetch it for every job."""
        function, details = pickle.loads(job)  # noqa: S301 - from the command's process
        try:
            if crew not in self._crews:
                self._crews[crew] = asyncio.create_task(self._open(crew, plan[0]))
            opened, desk, _ = await asyncio.shield(self._crews[crew])
            return Outcome(await function(opened, desk, *details))
        except MemskillError as error:
            return Outcome(error=error)

    async def dismiss(self, crew: str) -> None:
        """No more jobs of a crew will come."""
        if task := self._crews.pop(crew, None):
            await (await task).stack.aclose()

    async def _open(self, crew: str, stored: Awaitable[bytes]) -> _Open:
        plan: CrewPlan = pickle.loads(await stored)  # noqa: S301 - from the command's process
        desk, stack = plan.desk.desk(self._line, crew), AsyncExitStack()
        return _Open(await stack.enter_async_context(plan.kit.open(self._world, desk)), desk, stack)
