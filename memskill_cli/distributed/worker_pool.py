"""The workers on a Ray cluster: assign jobs, replace lost workers, retry their jobs.

Ray itself can restart actors and retry their calls, but it gives no notice and does not choose the least busy worker.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from memskill_cli import __version__
from memskill_cli.distributed.proxies import WorkerConfig
from memskill_cli.distributed.rpc import DriverServer, RpcAnswer, RpcCall
from memskill_cli.distributed.worker import Hello, JobResult, Worker
from memskill_cli.errors import RunError

CPU_SHARE = 0.25
"""CPUs per actor. Small, because actors mostly wait, and the other nodes must have room for them if a node is lost."""
MAX_CONCURRENCY = 100_000
"""Concurrent calls per actor. In effect unlimited: the number of jobs is limited elsewhere."""
NOTICE_AFTER, GIVE_UP_AFTER = 20.0, 600.0
"""Seconds of waiting for free resources of the cluster: until a notice, and until an error."""
_START_WINDOW = 10.0
"""Seconds to wait for more workers after the first one, so that it does not get all of the first jobs."""
_TRIES = 3  # workers in a row that fail to start; also lost workers per job


@dataclass(eq=False)
class _Member:
    """A worker that has started. :mod:`memskill_cli.distributed.rpc` has the two methods."""

    handle: Any
    where: str
    jobs: int = 0

    async def collect(self) -> list[RpcCall]:
        calls: list[RpcCall] = await self.handle.collect.remote()
        return calls

    def deliver(self, answers: list[RpcAnswer]) -> None:
        self.handle.deliver.remote(answers)


class WorkerPool:
    """``wanted`` workers, whose calls ``server`` answers. A lost worker is replaced, with a ``notice``.

    Belongs to one event loop. ``failed`` raises what a notified function of the driver has raised.
    """

    def __init__(
        self, server: DriverServer, worker_config: WorkerConfig, wanted: int, notice: Callable[[str], None]
    ) -> None:
        import ray

        self._server, self._worker_config, self._wanted, self._notice = server, worker_config, wanted, notice
        environment = {"env_vars": {"RAY_USE_UVLOOP": "0"}}  # env processes need features that uvloop lacks
        as_actor = ray.remote(
            num_cpus=CPU_SHARE, max_restarts=0, max_concurrency=MAX_CONCURRENCY, runtime_env=environment
        )
        self._kind = as_actor(Worker)
        self._members: list[_Member] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Condition()
        self._failed: list[str] = []  # why workers failed to start, since the last successful start
        self._noticed = False  # whether the user knows that there are no free resources
        self._start_deadline = math.inf

    def start(self) -> None:
        """Start the missing workers, unless the last :data:`_TRIES` starts failed."""
        from ray import cloudpickle

        if len(self._failed) >= _TRIES:
            return
        for _ in range(self._wanted - len(self._members) - len(self._starting)):
            actor_class = self._kind.options(scheduling_strategy="SPREAD")
            handle = actor_class.remote(self._worker_config, cloudpickle.dumps)
            self._starting.add(asyncio.create_task(self._start_worker(handle)))

    async def run_job(self, pool: str, stored: Any, job: bytes) -> JobResult:
        """The result of a job, run by the least busy worker; by another one if that worker is lost.

        Raises RunError if the job has lost :data:`_TRIES` workers, and the job's error if it is no MemskillError.
        """
        import ray

        for lost in itertools.count(1):
            member = await self._least_busy()
            member.jobs += 1
            pending = member.handle.run.remote(pool, [stored], job)
            try:
                result: JobResult = await pending
            except asyncio.CancelledError:
                ray.cancel(pending)
                raise
            except ray.exceptions.RayTaskError as error:  # an exception in the job, not a lost worker
                raise _job_error(error) from error
            except ray.exceptions.RayError as error:
                if lost >= _TRIES:
                    raise RunError(
                        f"a job has lost {lost} workers, the last on {member.where}: {one_line(error)}",
                        hint="check the memory of the nodes; completed work is kept, and --resume continues",
                    ) from None
                self._replace_lost(member)
            else:
                return result
            finally:
                member.jobs -= 1
        raise AssertionError

    def release(self, pool: str) -> None:
        for member in self._members:
            member.handle.release.remote(pool)

    def close(self) -> None:
        import ray

        for task in self._starting | self._serving:
            task.cancel()
        self.failed.cancel()
        for member in self._members:
            ray.kill(member.handle)

    async def _least_busy(self) -> _Member:
        waited = 0.0
        async with self._changed:
            while not self._members or (self._starting and time.monotonic() < self._start_deadline):
                if self._members:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._start_deadline - time.monotonic()):
                            await self._changed.wait()
                    continue
                self.start()
                if not self._starting:
                    raise RunError(
                        f"no worker starts on the Ray cluster: {self._failed[-1]}",
                        hint=f"is memskill {__version__} installed on every node, with the extras that are used?",
                    )
                try:
                    async with asyncio.timeout(NOTICE_AFTER):
                        await self._changed.wait()
                except TimeoutError:
                    waited += NOTICE_AFTER
                    self._check_wait(waited)
        return min(self._members, key=lambda member: member.jobs)

    def _check_wait(self, waited: float) -> None:
        """Raise RunError after too long a wait for resources; give one notice before."""
        if waited >= GIVE_UP_AFTER:
            raise RunError(
                f"the Ray cluster has had no free resources for a worker for {waited / 60:.0f} min",
                hint="check ray status; completed work is kept, and --resume continues",
            )
        if not self._noticed:
            self._noticed = True
            self._notice(
                f"the Ray cluster has no free resources for a worker yet; waiting, {GIVE_UP_AFTER / 60:g} min at most"
            )

    async def _start_worker(self, handle: Any) -> None:
        """Wait until the worker has started, and add it to the pool."""
        import ray

        try:
            hello: Hello = await handle.begin.remote()
            problem = hello.problem
            if hello.version != __version__:
                problem = f"{hello.where} has memskill {hello.version}, this machine has {__version__}"
        except ray.exceptions.RayError as error:
            problem = one_line(error)
        async with self._changed:
            self._starting.remove(asyncio.current_task())  # type: ignore[arg-type]
            if problem:
                self._failed.append(problem)
                ray.kill(handle)
            else:
                self._failed.clear()
                self._noticed = False
                self._start_deadline = min(self._start_deadline, time.monotonic() + _START_WINDOW)
                self._members.append(member := _Member(handle, hello.where))
                task = asyncio.create_task(self._serve(member))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
            self.start()
            self._changed.notify_all()

    async def _serve(self, member: _Member) -> None:
        """Answer the calls of a worker until it is lost."""
        import ray

        try:
            await self._server.serve(member)
        except ray.exceptions.RayError:
            self._replace_lost(member)
        except Exception as error:  # a notified function failed, for example because the disk is full
            if not self.failed.done():
                self.failed.set_exception(error)

    def _replace_lost(self, member: _Member) -> None:
        import ray

        if member not in self._members:
            return  # its loss was reported already
        self._members.remove(member)
        self._notice(f"the worker on {member.where} is lost; its jobs will be retried from cache")
        ray.kill(member.handle)
        self._failed.clear()
        self.start()


def _job_error(error: Any) -> Exception:
    """The exception that a job raised on the worker."""
    import ray

    cause: Exception = error.cause
    return RunError(one_line(cause)) if isinstance(cause, ray.exceptions.RayError) else cause


def one_line(error: Exception) -> str:
    """The last line of an error's text; errors of Ray have many lines."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
