"""A worker: one process with one event loop that runs many jobs concurrently.

This module does not depend on Ray; ``worker_pool.py`` makes a Ray actor of the class.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from memskill_cli import __version__
from memskill_cli.datasets.registry import include_own
from memskill_cli.distributed.proxies import CallbackSpec, WorkerConfig
from memskill_cli.distributed.rpc import DriverClient, RpcAnswer, RpcCall
from memskill_cli.errors import MemskillError
from memskill_cli.utils import devices, process
from memskill_cli.utils.registry import Plugin, load_plugin


class Hello(NamedTuple):
    """A new worker's first message. ``where`` is its host and pid; ``problem`` is why it cannot work, "" if it can."""

    version: str
    where: str
    problem: str


class JobResult(NamedTuple):
    """The result of a job: its value, or a :class:`MemskillError`."""

    value: Any = None
    error: MemskillError | None = None


class JobContextSpec(NamedTuple):
    """What a worker opens once for all jobs of a pool."""

    context: Any
    callbacks: CallbackSpec


class _Open(NamedTuple):
    opened: Any
    callbacks: Any
    stack: AsyncExitStack


class Worker:
    """Belongs to the event loop of a Ray actor. ``dumps`` pickles messages."""

    def __init__(self, worker_config: WorkerConfig, dumps: Callable[[Any], bytes]) -> None:
        self._worker_config, self._dumps = worker_config, dumps
        self._pools: dict[str, asyncio.Task[_Open]] = {}

    async def begin(self) -> Hello:
        """Load plug-ins and make the proxies of the driver."""
        process.own()  # the process belongs to memskill alone
        devices.torch_in_one_thread()  # the last bits of the controller's results depend on the number of threads
        where, games = f"{socket.gethostname()} (process {os.getpid()})", self._worker_config.env_pool
        if problem := _load_plugins(self._worker_config.plugins, where):
            return Hello(__version__, where, problem)
        if self._worker_config.own_dataset:
            include_own(self._worker_config.dataset)
        if games and not games.root.is_dir():
            return Hello(__version__, where, f"{where} has no games folder {games.root}")
        self._driver = DriverClient(self._dumps)
        self._context = self._worker_config.context(self._driver)
        return Hello(__version__, where, "")

    async def collect(self) -> list[RpcCall]:
        """Wait for calls of the driver's functions, and return all of them."""
        return await self._driver.collect()

    async def deliver(self, answers: list[RpcAnswer]) -> None:
        self._driver.deliver(answers)

    async def run(self, pool: str, spec: list[Awaitable[bytes]], job: bytes) -> JobResult:
        """Run a job of a pool. ``spec`` is in a list so that Ray does not fetch it for every job."""
        function, details = pickle.loads(job)  # noqa: S301 - from the driver
        try:
            if pool not in self._pools:
                self._pools[pool] = asyncio.create_task(self._open(pool, spec[0]))
            opened, callbacks, _ = await asyncio.shield(self._pools[pool])
            return JobResult(await function(opened, callbacks, *details))
        except MemskillError as error:
            return JobResult(error=error)

    async def release(self, pool: str) -> None:
        """Close the job context of a pool; no more of its jobs will come."""
        if task := self._pools.pop(pool, None):
            await (await task).stack.aclose()

    async def _open(self, pool: str, stored: Awaitable[bytes]) -> _Open:
        spec: JobContextSpec = pickle.loads(await stored)  # noqa: S301 - from the driver
        callbacks, stack = spec.callbacks.proxy(self._driver, pool), AsyncExitStack()
        return _Open(await stack.enter_async_context(spec.context.open(self._context, callbacks)), callbacks, stack)


def _load_plugins(plugins: Iterable[Plugin], where: str) -> str:
    """Load the driver's plug-in files. Returns the reason if that is impossible, else ""."""
    for plugin in plugins:
        if not plugin.path.is_file():
            return f"{where} has no plug-in file {plugin.path}: copy it to the same path on every node"
        try:
            here = load_plugin(plugin.path)
        except MemskillError as error:
            return f"{where}: {error.message}"
        if here.sha256 != plugin.sha256:
            return f"{where} has another version of the plug-in {plugin.path}: copy the same file to every node"
    return ""
