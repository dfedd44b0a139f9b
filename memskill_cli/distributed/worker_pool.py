"""The workers of a Ray cluster: who does the next job, and what becomes of jobs when one of them is lost."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from memskill_cli import __version__
from memskill_cli.distributed.proxies import Charter
from memskill_cli.distributed.worker import Introduction, Outcome, Worker
from memskill_cli.errors import RunError

SHARE = 0.25
"""Of a CPU, what an actor asks for: they mostly wait, and when a node is lost there must be room for them on others."""
MANY = 100_000
"""Calls that an actor may have under way: it is for others to bound them."""
TELL_AFTER, PATIENCE = 20.0, 600.0
"""Seconds of waiting for a cluster that has no room: until it is said, and until it is given up."""
_GATHERING = 10.0
"""Seconds in which the first worker waits for the others, so that it does not get all of the first jobs."""
_TRIES = 3  # workers in a row that do not come up; and workers that one job may lose


class Boxes(Protocol):
    """The office as a handle to be given away."""

    def close(self, name: str) -> None: ...


@dataclass
class _Member:
    name: str
    handle: Any
    where: str
    jobs: int = 0


class Staff:
    """``wanted`` workers, each replaced when it is lost. ``notice`` is told of those. Lives in one event loop."""

    def __init__(self, office: Boxes, charter: Charter, wanted: int, notice: Callable[[str], None]) -> None:
        import ray

        self._office, self._charter, self._wanted, self._notice = office, charter, wanted, notice
        asyncio_itself = {"env_vars": {"RAY_USE_UVLOOP": "0"}}  # as here: games need what uvloop does not have
        as_actor = ray.remote(num_cpus=SHARE, max_restarts=0, max_concurrency=MANY, runtime_env=asyncio_itself)
        self._kind = as_actor(Worker)
        self._numbers = itertools.count(1)
        self._members: dict[str, _Member] = {}
        self._coming: set[asyncio.Task[None]] = set()
        self._news = asyncio.Condition()
        self._failed: list[str] = []  # why workers did not come up, since the last that did
        self._told = False  # that there is no room
        self._gathered = math.inf

    def hire(self) -> None:
        """Ask the cluster for those who are missing, unless it has failed to make any several times in a row."""
        from ray import cloudpickle

        if len(self._failed) >= _TRIES:
            return
        for _ in range(self._wanted - len(self._members) - len(self._coming)):
            name = f"worker-{next(self._numbers)}"
            made = self._kind.options(scheduling_strategy="SPREAD")
            handle = made.remote(name, self._office, self._charter, cloudpickle.dumps)
            self._coming.add(asyncio.create_task(self._come(name, handle)))

    async def do(self, crew: str, stored: Any, job: bytes) -> Outcome:
        """The outcome of a job, by whoever has the fewest; by another if that one is lost meanwhile."""
        import ray

        for lost in itertools.count(1):
            member = await self._least_busy()
            member.jobs += 1
            promised = member.handle.run.remote(crew, [stored], job)
            try:
                outcome: Outcome = await promised
            except asyncio.CancelledError:
                ray.cancel(promised)
                raise
            except ray.exceptions.RayTaskError as error:  # a fault of the program, not of the machine
                raise _fault(error) from error
            except ray.exceptions.RayError as error:
                if lost >= _TRIES:
                    raise RunError(
                        f"a trace has lost {lost} workers, the last on {member.where}: {one_line(error)}",
                        hint="has the node enough memory? What was done is kept, and --resume goes on",
                    ) from None
                await self._lost(member)
            else:
                return outcome
            finally:
                member.jobs -= 1
        raise AssertionError

    def dismiss(self, crew: str) -> None:
        for member in self._members.values():
            member.handle.dismiss.remote(crew)

    def close(self) -> None:
        import ray

        for task in self._coming:
            task.cancel()
        for member in self._members.values():
            ray.kill(member.handle)

    async def _least_busy(self) -> _Member:
        waited = 0.0
        async with self._news:
            while not self._members or (self._coming and time.monotonic() < self._gathered):
                if self._members:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._gathered - time.monotonic()):
                            await self._news.wait()
                    continue
                self.hire()
                if not self._coming:
                    raise RunError(
                        f"no worker comes up on the Ray cluster: {self._failed[-1]}",
                        hint=f"is memskill {__version__} installed on every node, with the extras that are used?",
                    )
                try:
                    async with asyncio.timeout(TELL_AFTER):
                        await self._news.wait()
                except TimeoutError:
                    waited += TELL_AFTER
                    self._wait_on(waited)
        return min(self._members.values(), key=lambda member: member.jobs)

    def _wait_on(self, waited: float) -> None:
        if waited >= PATIENCE:
            raise RunError(
                f"the Ray cluster has had no room for a worker for {waited / 60:.0f} min",
                hint="see ray status; what was done is kept, and --resume goes on",
            )
        if not self._told:
            self._told = True
            self._notice(f"the Ray cluster has no room for a worker yet; waiting, {PATIENCE / 60:g} min at most")

    async def _come(self, name: str, handle: Any) -> None:
        """One more worker, when the cluster has room."""
        import ray

        try:
            said: Introduction = await handle.begin.remote()
            fault = said.fault
            if said.version != __version__:
                fault = f"memskill is {said.version} on {said.where} and {__version__} here"
        except ray.exceptions.RayError as error:
            fault = one_line(error)
        async with self._news:
            self._coming.remove(asyncio.current_task())  # type: ignore[arg-type]
            if fault:
                self._failed.append(fault)
                ray.kill(handle)
            else:
                self._failed.clear()
                self._told = False
                self._gathered = min(self._gathered, time.monotonic() + _GATHERING)
                self._members[name] = _Member(name, handle, said.where)
            self.hire()
            self._news.notify_all()

    async def _lost(self, member: _Member) -> None:
        import ray

        if self._members.pop(member.name, None) is None:
            return  # another of its jobs has told so
        self._notice(f"the worker on {member.where} is lost; what it was doing is done again, paid for once")
        ray.kill(member.handle)
        self._office.close(member.name)
        self._failed.clear()
        self.hire()


def _fault(error: Any) -> Exception:
    """What a job raised that is no error of ours, with all that was said of it elsewhere."""
    import ray

    cause: Exception = error.cause
    return RunError(one_line(cause)) if isinstance(cause, ray.exceptions.RayError) else cause


def one_line(error: Exception) -> str:
    """What an error of Ray's, which is often many lines, comes to."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
