"""Jobs in workers behind RPC, all in this process: the results are those of the local engine."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import pickle
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.distributed.base import Job, JobContext, JobPool
from memskill_cli.distributed.proxies import CallbackSpec, WorkerConfig, callback_functions, driver_functions
from memskill_cli.distributed.rpc import DriverServer, RpcAnswer
from memskill_cli.distributed.worker import JobContextSpec, Worker
from memskill_cli.errors import AuthError, ModelError
from memskill_cli.evaluation import runner
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, MockLLMServer
from memskill_cli.training import trainer
from memskill_cli.utils import files

from ..evaluation.harness import TASK, Rig
from ..training.resume_harness import Lives, outcome, reply


class RemoteEngine:
    """What :class:`~memskill_cli.distributed.ray.RayEngine` does without Ray: ``count`` workers, all pickled."""

    pools = 0
    """Number of pools opened by all engines, so that a test can check that workers were used."""

    def __init__(self, context: RolloutContext, count: int = 2) -> None:
        self.context, self.count = context, count
        self.numbers = itertools.count(1)

    @asynccontextmanager
    async def open_pool(self, job_context: JobContext, callbacks: Any) -> AsyncIterator[JobPool]:
        RemoteEngine.pools += 1
        name = f"pool-{next(self.numbers)}"
        server = DriverServer(driver_functions(self.context, print) | callback_functions(callbacks, name))
        worker_config = pickle.loads(pickle.dumps(WorkerConfig.of(self.context, None)))
        workers = [Worker(worker_config, pickle.dumps) for _ in range(self.count)]
        for worker in workers:
            await worker.begin()
        serving = [asyncio.create_task(server.serve(Handle(worker))) for worker in workers]
        try:
            yield RemotePool(name, pickle.dumps(JobContextSpec(job_context, CallbackSpec.of(callbacks))), workers)
        finally:
            for worker in workers:
                await worker.release(name)
            for task in serving:
                task.cancel()
            server.close()


class Handle:
    """A worker as the driver sees it."""

    def __init__(self, worker: Worker) -> None:
        self.collect, self.worker = worker.collect, worker

    def deliver(self, answers: list[RpcAnswer]) -> object:
        return asyncio.ensure_future(self.worker.deliver(answers))


class RemotePool:
    def __init__(self, name: str, spec: bytes, workers: list[Worker]) -> None:
        self.name, self.spec = name, spec
        self.turns = itertools.cycle(workers)

    async def run(self, job: Job[Any], *details: Any) -> Any:
        async def stored() -> bytes:
            return self.spec

        result = await next(self.turns).run(self.name, [stored()], pickle.dumps((job, details)))
        outcome = pickle.loads(pickle.dumps(result))
        if outcome.error:
            raise outcome.error
        return outcome.value


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainings and evaluations of this process have their traces read and asked elsewhere."""
    for module in (trainer, runner):
        monkeypatch.setattr(module, "LocalEngine", RemoteEngine)
    before = RemoteEngine.pools
    yield
    assert RemoteEngine.pools > before, "or nothing was done elsewhere"


def test_a_training_elsewhere_is_the_same_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, before = [], RemoteEngine.pools
    for name, engine in (("here", None), ("there", RemoteEngine)):
        with MockLLMServer(reply) as server:
            lives = Lives(tmp_path / name, server)
            if engine:
                monkeypatch.setattr(trainer, "LocalEngine", engine)
            run = lives.begin("r")
            lives.live(run)
            found.append((outcome(run), sorted(request.text for request in server.requests)))
            assert (RemoteEngine.pools > before) == (name == "there")
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["memskill", "random-skills", "no-memory", "full-context", "rag"])
def test_an_evaluation_elsewhere_has_the_same_rows_and_memories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    found, before = [], RemoteEngine.pools
    for name, engine in (("here", None), ("there", RemoteEngine)):
        rig = Rig(tmp_path / name, eval__context_tokens=8000)
        if engine:
            monkeypatch.setattr(runner, "LocalEngine", engine)
        summary = rig.method(method)
        assert (RemoteEngine.pools > before) == (name == "there")
        known = {key: summary[key] for key in summary.keys() - {"usage", "seconds"}}
        read = [row | {"seconds": 0} for row in files.read_jsonl(rig.folder / "steps.jsonl")]
        assert bool(read) == (method in ("memskill", "random-skills"))
        found.append((known, rig.rows(), read, list(files.read_jsonl(rig.folder / "memories.jsonl"))))
    here, there = found
    assert here[:3] == there[:3]
    assert sorted(here[3], key=str) == sorted(there[3], key=str)


@pytest.mark.usefixtures("far")
def test_a_memory_that_was_kept_is_taken_up_elsewhere_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.method("memskill")
    rows = rig.rows()
    (rig.folder / "results.jsonl").unlink()
    rig.method("memskill")
    assert rig.rows() == rows
    assert "executor" not in rig.roles(), "nothing was written twice"


@pytest.mark.usefixtures("far")
def test_what_fails_elsewhere_is_a_row_here(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with pytest.raises(ModelError, match="none of 6 queries got an answer"):
        rig.evaluate(lambda request: Fault.server_error() if request.role == "answer" else rules.reply(request))
    assert [row["error"].partition(":")[0] for row in rig.rows()] == ["answer"] * 6
    with pytest.raises(ModelError, match="none of 6 queries got an answer"):
        rig.evaluate(lambda request: Fault.server_error(), dataclasses.replace(TASK, method="all-skills"))
    assert [row["error"].partition(":")[0] for row in rig.rows()] == ["memory"] * 6


@pytest.mark.usefixtures("far")
def test_a_key_that_is_refused_elsewhere_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(AuthError):
        Rig(tmp_path).evaluate(Fault.unauthorized())


def test_no_key_and_no_path_is_told_to_those_elsewhere(tmp_path: Path) -> None:
    seen: list[bytes] = []

    class Watched(RemoteEngine):
        @asynccontextmanager
        async def open_pool(self, job_context: JobContext, callbacks: Any) -> AsyncIterator[JobPool]:
            seen.append(
                pickle.dumps(
                    (WorkerConfig.of(self.context, None), JobContextSpec(job_context, CallbackSpec.of(callbacks)))
                )
            )
            async with super().open_pool(job_context, callbacks) as pool:
                yield pool

    rig = Rig(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-canary-1234567890")
        patch.setattr(runner, "LocalEngine", Watched)
        rig.method("memskill")
    assert seen
    assert not any(b"canary" in told or str(tmp_path).encode() in told for told in seen)
