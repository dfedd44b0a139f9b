"""Jobs on the machines of a Ray cluster.

    this process                      office (actor)        workers (actors, on any node)
    run directory, gateway, budget  <--- letters --->       traces: controller, memory bank, parsing, games
    cache of embeddings             ---- texts ---->        encoders (actors, GPUs where there are some)

Models are asked, money is counted and files are written here and nowhere else: ten workers share one gateway with its
rests, its bound and its budget, no key leaves this process, and a worker that dies takes no reply with it. Its jobs are
done again by others; what they ask has been answered before and is not paid for again.

A worker is an actor in which many traces wait side by side, each a task of its own: as plain tasks of Ray they would
take a process each for a time that is nearly all waiting.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from memskill_cli import __version__
from memskill_cli.engines.base import Crew, Job, Kit
from memskill_cli.engines.cluster import SHARE
from memskill_cli.engines.mail import COMMAND, Correspondent, Post, PostOffice
from memskill_cli.engines.standins import Charter, DeskPlan, Games, desk_functions, functions_of
from memskill_cli.engines.worker import CrewPlan, Introduction, Outcome, Worker
from memskill_cli.errors import RunError
from memskill_cli.training.rollout import World

T = TypeVar("T")
_MANY = 100_000
"""Calls that an actor may have under way: it is for others to bound them."""
_TELL_AFTER, _PATIENCE = 20.0, 600.0  # seconds of waiting for a cluster that has no room
_TRIES = 3  # workers in a row that do not come up


class _Boxes:
    """The office as this process or a worker sees it: an actor's handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def post(self, letters: Post) -> object:
        return self._handle.post.remote(letters)

    async def collect(self, name: str) -> Any:
        return await self._handle.collect.remote(name)

    def close(self, name: str) -> None:
        self._handle.close.remote(name)


@dataclass
class _Member:
    name: str
    handle: Any
    where: str
    jobs: int = 0


class RayEngine:
    """Made by :func:`open_engine`."""

    def __init__(self, world: World, staff: Staff, functions: dict[str, Callable[..., Any]]) -> None:
        self._world, self._staff, self._functions = world, staff, functions
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def crew(self, kit: Kit, desk: Any) -> AsyncIterator[Crew]:
        import ray
        from ray import cloudpickle

        name, plan = f"crew-{next(self._numbers)}", CrewPlan(kit, DeskPlan.of(desk))
        stored = ray.put(cloudpickle.dumps(plan))
        self._functions |= desk_functions(desk, name)
        try:
            yield _RayCrew(name, stored, self._staff)
        finally:
            self._staff.dismiss(name)
            for function in desk_functions(desk, name):
                del self._functions[function]


class _RayCrew:
    def __init__(self, name: str, stored: Any, staff: Staff) -> None:
        self._name, self._stored, self._staff = name, stored, staff

    async def run(self, job: Job[T], *details: Any) -> T:
        from ray import cloudpickle

        outcome = await self._staff.do(self._name, self._stored, cloudpickle.dumps((job, details)))
        if outcome.error is not None:
            raise outcome.error
        return outcome.value


class Staff:
    """The workers: ``wanted`` of them, each replaced when it is lost. ``notice`` is told of those."""

    def __init__(self, office: Any, charter: Charter, wanted: int, notice: Callable[[str], None]) -> None:
        import ray

        self._office, self._charter, self._wanted, self._notice = office, charter, wanted, notice
        asyncio_itself = {"env_vars": {"RAY_USE_UVLOOP": "0"}}  # as here: games need what uvloop does not have
        as_actor = ray.remote(num_cpus=SHARE, max_restarts=0, max_concurrency=_MANY, runtime_env=asyncio_itself)
        self._kind = as_actor(Worker)
        self._numbers = itertools.count(1)
        self._members: dict[str, _Member] = {}
        self._coming: set[asyncio.Task[None]] = set()
        self._news = asyncio.Condition()
        self._failed: list[str] = []  # why workers did not come up, since the last that did
        self._fatal: Exception | None = None

    def hire(self) -> None:
        """Ask the cluster for those who are missing."""
        from ray import cloudpickle

        for _ in range(self._wanted - len(self._members) - len(self._coming)):
            name = f"worker-{next(self._numbers)}"
            made = self._kind.options(scheduling_strategy="SPREAD")
            handle = made.remote(name, self._office, self._charter, cloudpickle.dumps)
            task = asyncio.create_task(self._come(name, handle))
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    async def do(self, crew: str, stored: Any, job: bytes) -> Outcome:
        """The outcome of a job, by whoever has the fewest; by another if that one is lost meanwhile."""
        import ray

        while True:
            member = await self._least_busy()
            member.jobs += 1
            promised = member.handle.run.remote(crew, [stored], job)
            try:
                outcome: Outcome = await promised
            except asyncio.CancelledError:
                ray.cancel(promised)
                raise
            except ray.exceptions.RayTaskError as error:  # a fault of the program, not of the machine
                raise error.cause from None
            except ray.exceptions.RayError:
                await self._lost(member)
            else:
                return outcome
            finally:
                member.jobs -= 1

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
            while not self._members:
                if self._fatal:
                    raise self._fatal
                self.hire()
                try:
                    async with asyncio.timeout(_TELL_AFTER):
                        await self._news.wait()
                except TimeoutError:
                    waited += _TELL_AFTER
                    self._wait_on(waited)
        return min(self._members.values(), key=lambda member: member.jobs)

    def _wait_on(self, waited: float) -> None:
        if waited >= _PATIENCE:
            raise RunError(
                f"the Ray cluster has had no room for a worker for {waited / 60:.0f} min",
                hint="see ray status; what was done is kept, and --resume goes on",
            )
        if waited == _TELL_AFTER:
            self._notice(f"the Ray cluster has no room for a worker yet; waiting, {_PATIENCE / 60:g} min at most")

    async def _come(self, name: str, handle: Any) -> None:
        """One more worker, when the cluster has room."""
        import ray

        try:
            said: Introduction = await handle.begin.remote()
        except ray.exceptions.RayError as error:
            self._failed.append((str(error).strip() or type(error).__name__).splitlines()[-1])
            if len(self._failed) >= _TRIES:
                self._fatal = RunError(
                    f"no worker comes up on the Ray cluster: {self._failed[-1]}",
                    hint=f"is memskill {__version__} with its extras installed on every node?",
                )
        else:
            self._failed.clear()
            self._members[name] = _Member(name, handle, said.where)
            if said.version != __version__:
                self._fatal = RunError(
                    f"memskill is {said.version} on {said.where} and {__version__} here",
                    hint="install the same version on every node",
                )
                del self._members[name]
        async with self._news:
            self._news.notify_all()

    async def _lost(self, member: _Member) -> None:
        import ray

        if self._members.pop(member.name, None) is None:
            return  # another of its jobs has told so
        self._notice(f"the worker on {member.where} is lost; what it was doing is done again, paid for once")
        ray.kill(member.handle)
        self._office.close(member.name)
        self.hire()


@asynccontextmanager
async def open_engine(
    world: World, games: Games | None, workers: int, notice: Callable[[str], None]
) -> AsyncIterator[RayEngine]:
    """An engine of ``workers`` processes on the cluster we are connected to, whose jobs work in ``world``."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    office = ray.remote(num_cpus=0, max_concurrency=_MANY)(PostOffice).options(scheduling_strategy=here).remote()
    boxes = _Boxes(office)
    functions = functions_of(world, notice)
    mail = Correspondent(COMMAND, boxes, functions, cloudpickle.dumps)
    staff = Staff(boxes, Charter.of(world, games), workers, notice)
    serving = asyncio.create_task(mail.serve())
    staff.hire()
    try:
        yield RayEngine(world, staff, functions)
    finally:
        staff.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        ray.kill(office)
