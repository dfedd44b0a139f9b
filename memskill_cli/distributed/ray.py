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
from typing import Any, TypeVar

from memskill_cli.distributed.base import Crew, Job, Kit
from memskill_cli.distributed.proxies import Charter, DeskPlan, Games, desk_functions, functions_of
from memskill_cli.distributed.rpc import COMMAND, Correspondent, Post, PostOffice
from memskill_cli.distributed.worker import CrewPlan, Outcome
from memskill_cli.distributed.worker_pool import MANY, Staff
from memskill_cli.rollout.episode import World

T = TypeVar("T")


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


class RayEngine:
    """Made by :func:`open_engine`. ``functions`` are what may be asked of this process, ``serving`` answers."""

    def __init__(self, staff: Staff, functions: dict[str, Callable[..., Any]], serving: asyncio.Task[None]) -> None:
        self._staff, self._functions, self._serving = staff, functions, serving
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def crew(self, kit: Kit, desk: Any) -> AsyncIterator[Crew]:
        import ray
        from ray import cloudpickle

        name, plan = f"crew-{next(self._numbers)}", CrewPlan(kit, DeskPlan.of(desk))
        stored = ray.put(cloudpickle.dumps(plan))
        self._functions |= desk_functions(desk, name)
        try:
            yield _RayCrew(name, stored, self._staff, self._serving)
        finally:
            self._staff.dismiss(name)
            for function in desk_functions(desk, name):
                del self._functions[function]


class _RayCrew:
    def __init__(self, name: str, stored: Any, staff: Staff, serving: asyncio.Task[None]) -> None:
        self._name, self._stored, self._staff, self._serving = name, stored, staff, serving

    async def run(self, job: Job[T], *details: Any) -> T:
        from ray import cloudpickle

        done = self._staff.do(self._name, self._stored, cloudpickle.dumps((job, details)))
        outcome = await self._while_served(asyncio.ensure_future(done))
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    async def _while_served(self, doing: asyncio.Future[Outcome]) -> Outcome:
        """The outcome; or what went wrong here, without which no job elsewhere comes to an end."""
        try:
            both: set[asyncio.Future[Any]] = {doing, self._serving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                self._serving.result()
            return await doing
        finally:
            doing.cancel()


@asynccontextmanager
async def open_engine(
    world: World, games: Games | None, workers: int, notice: Callable[[str], None]
) -> AsyncIterator[RayEngine]:
    """An engine of ``workers`` processes on the cluster we are connected to, whose jobs work in ``world``."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    office = ray.remote(num_cpus=0, max_concurrency=MANY)(PostOffice).options(scheduling_strategy=here).remote()
    boxes = _Boxes(office)
    functions = functions_of(world, notice)
    mail = Correspondent(COMMAND, boxes, functions, cloudpickle.dumps)
    staff = Staff(boxes, Charter.of(world, games), workers, notice)
    serving = asyncio.create_task(mail.serve())
    staff.hire()
    try:
        yield RayEngine(staff, functions, serving)
    finally:
        staff.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        ray.kill(office)
