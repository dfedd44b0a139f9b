"""Run jobs on the nodes of a Ray cluster.

    driver (this process)                                   workers (actors, on any node)
    run directory, LLM client, budget  <----- rpc ------>   traces: controller, memory bank, parsing, games
    cache of embeddings                ----- texts ----->   encoders (actors, on GPUs if there are any)

Only the driver calls language models, counts costs and writes files. So all workers share one LLM client with its key
cooldowns, rate limits and budget, API keys stay in the driver, and a lost worker loses no replies: its jobs run again
on other workers, and their calls are answered from the cache.

A worker is an actor that runs many jobs concurrently as asyncio tasks. As Ray tasks, each job would need its own
process, although it mostly waits.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from memskill_cli.distributed.base import Job, JobContext, JobPool
from memskill_cli.distributed.proxies import (
    CallbackSpec,
    EnvPoolConfig,
    WorkerConfig,
    callback_functions,
    driver_functions,
)
from memskill_cli.distributed.rpc import DriverServer
from memskill_cli.distributed.worker import JobContextSpec, JobResult
from memskill_cli.distributed.worker_pool import WorkerPool
from memskill_cli.rollout.context import RolloutContext

T = TypeVar("T")


class RayEngine:
    """Created by :func:`open_engine`. Workers may call ``functions``."""

    def __init__(self, workers: WorkerPool, functions: dict[str, Callable[..., Any]]) -> None:
        self._workers, self._functions = workers, functions
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def open_pool(self, job_context: JobContext, callbacks: Any) -> AsyncIterator[JobPool]:
        import ray
        from ray import cloudpickle

        name, spec = f"pool-{next(self._numbers)}", JobContextSpec(job_context, CallbackSpec.of(callbacks))
        stored = ray.put(cloudpickle.dumps(spec))
        self._functions |= callback_functions(callbacks, name)
        try:
            yield _RayPool(name, stored, self._workers)
        finally:
            self._workers.release(name)
            for function in callback_functions(callbacks, name):
                del self._functions[function]


class _RayPool:
    def __init__(self, name: str, stored: Any, workers: WorkerPool) -> None:
        self._name, self._stored, self._workers = name, stored, workers

    async def run(self, job: Job[T], *details: Any) -> T:
        from ray import cloudpickle

        running = self._workers.run_job(self._name, self._stored, cloudpickle.dumps((job, details)))
        result = await self._unless_failed(asyncio.ensure_future(running))
        if result.error is not None:
            raise result.error
        return result.value

    async def _unless_failed(self, running: asyncio.Future[JobResult]) -> JobResult:
        """The result of a job. Raises if the driver cannot answer a worker any more: the job would wait forever."""
        try:
            both: set[asyncio.Future[Any]] = {running, self._workers.failed}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                self._workers.failed.result()
            return await running
        finally:
            running.cancel()


@asynccontextmanager
async def open_engine(
    context: RolloutContext, games: EnvPoolConfig | None, workers: int, notice: Callable[[str], None]
) -> AsyncIterator[RayEngine]:
    """An engine with ``workers`` worker processes on the connected cluster; jobs get a proxy of ``context``."""
    from ray import cloudpickle

    functions = driver_functions(context, notice)
    server = DriverServer(functions, cloudpickle.dumps)
    pool = WorkerPool(server, WorkerConfig.of(context, games), workers, notice)
    pool.start()
    try:
        yield RayEngine(pool, functions)
    finally:
        pool.close()
        server.close()
