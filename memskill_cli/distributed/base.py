"""What an engine is to training and evaluation: it does the same job on many traces, here or elsewhere.

A *kit* is what every job of one kind needs (the controller of an inner epoch, a method of remembering); it is opened
once wherever jobs are done. The *desk* is where those jobs report, and it never leaves the process of the command: a
frozen dataclass whose fields are functions. A coroutine function there is called and waited for; any other is told and
gives nothing back. Only the command's process writes to a run, asks language models and spends money.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

from memskill_cli.rollout.episode import World

T = TypeVar("T")
Job = Callable[..., Awaitable[T]]
"""A module's function that is given the opened kit, the desk, and what is special about this one job."""


class Kit(Protocol):
    """Made in the process of the command, opened where jobs are done; so it must be possible to send it there."""

    def open(self, world: World, desk: Any) -> AbstractAsyncContextManager[Any]: ...


class Crew(Protocol):
    """Those who have opened one kit."""

    async def run(self, job: Job[T], *details: Any) -> T:
        """``await job(opened kit, desk, *details)``. Any number at a time; each result depends on its own details only.

        Raises what the job raises. A job that is lost with the machine it ran on is done again, which costs nothing:
        what it asked is asked by the process of the command, which has kept the replies.
        """
        ...


class Engine(Protocol):
    def crew(self, kit: Kit, desk: Any) -> AbstractAsyncContextManager[Crew]: ...


class LocalEngine:
    """Every job in this process and event loop."""

    def __init__(self, world: World) -> None:
        self._world = world

    @asynccontextmanager
    async def crew(self, kit: Kit, desk: Any) -> AsyncIterator[Crew]:
        async with kit.open(self._world, desk) as opened:
            yield _Here(opened, desk)


class _Here:
    def __init__(self, opened: Any, desk: Any) -> None:
        self._opened, self._desk = opened, desk

    async def run(self, job: Job[T], *details: Any) -> T:
        return await job(self._opened, self._desk, *details)
