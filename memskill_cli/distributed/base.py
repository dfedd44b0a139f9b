"""Interface of an engine: run the same job on many traces, in this process or in workers.

A *job context* is what all jobs of one kind need (the controller of an inner epoch, an evaluation method); each process
that runs jobs opens it once. *Callbacks* are how jobs report to the driver, the process of the command: a frozen
dataclass whose fields are functions that run in the driver. A coroutine function is awaited; any other function is a
notification without a result. Only the driver writes to a run and calls language models.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

from memskill_cli.rollout.context import RolloutContext

T = TypeVar("T")
Job = Callable[..., Awaitable[T]]
"""A module-level function with the arguments (opened job context, callbacks, *details of this job)."""


class JobContext(Protocol):
    """Created in the driver, opened where jobs run; so it must be picklable."""

    def open(self, context: RolloutContext, callbacks: Any) -> AbstractAsyncContextManager[Any]: ...


class JobPool(Protocol):
    """Runs jobs with one job context."""

    async def run(self, job: Job[T], *details: Any) -> T:
        """``await job(opened context, callbacks, *details)``; any number concurrently.

        A result depends only on the details. Raises what the job raises. If a worker is lost, its jobs run again; their
        model calls are not paid for again, because the driver has cached the replies.
        """
        ...


class Engine(Protocol):
    def open_pool(self, job_context: JobContext, callbacks: Any) -> AbstractAsyncContextManager[JobPool]: ...


class LocalEngine:
    """Runs every job in this process and event loop."""

    def __init__(self, context: RolloutContext) -> None:
        self._context = context

    @asynccontextmanager
    async def open_pool(self, job_context: JobContext, callbacks: Any) -> AsyncIterator[JobPool]:
        async with job_context.open(self._context, callbacks) as opened:
            yield _LocalPool(opened, callbacks)


class _LocalPool:
    def __init__(self, opened: Any, callbacks: Any) -> None:
        self._opened, self._callbacks = opened, callbacks

    async def run(self, job: Job[T], *details: Any) -> T:
        return await job(self._opened, self._callbacks, *details)
