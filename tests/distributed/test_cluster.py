"""The Ray engine on a local cluster: lost encoders and workers, and their jobs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memskill_cli.config import RayConfig
from memskill_cli.errors import EncoderError, RunError
from memskill_cli.memory.encoder_models import HashingEncoder
from memskill_cli.types import ROLES

pytestmark = [
    pytest.mark.extra,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]


@dataclass
class Told:
    notices: list[str]
    cluster: Any


@pytest.fixture(scope="module")
def cluster() -> Iterator[Told]:
    from memskill_cli.distributed.cluster import connected

    notices: list[str] = []
    with connected(RayConfig(workers=2), notices.append) as opened:
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import it
        yield Told(notices, opened)


# --- encoders -------------------------------------------------------------------------------------------------------


def encoder_pool(told: Told, count: int = 2) -> Any:
    from memskill_cli.distributed.encoder_actors import EncoderActorPool

    return EncoderActorPool(count, 0, told.notices.append)


TEXTS = [f"memory number {number}" for number in range(9)]


def test_texts_are_spread_over_hosts_and_come_back_in_order(cluster: Told) -> None:
    from memskill_cli.distributed.encoder_actors import ActorEncoder

    encoder = ActorEncoder(encoder_pool(cluster), "hashing", "cpu")
    assert encoder.dim == HashingEncoder.dim
    expected = HashingEncoder().encode(TEXTS)
    for count in (1, 2, 9):
        assert np.array_equal(encoder.encode(TEXTS[:count]), expected[:count])


def test_what_lost_hosts_would_have_done_is_done_by_others_or_new_ones(cluster: Told) -> None:
    import ray

    pool, expected = encoder_pool(cluster), HashingEncoder().encode(TEXTS)
    assert np.array_equal(pool.encode("hashing", "cpu", TEXTS, "context"), expected)
    for lost in (pool.actors[:1], pool.actors[1:]):
        for host in lost:
            ray.kill(host)
        assert np.array_equal(pool.encode("hashing", "cpu", TEXTS, "context"), expected)
    assert len(pool.actors) == 2
    assert "an encoder actor on the Ray cluster is lost; the other actors take over" in cluster.notices


def test_an_encoder_that_is_not_there_is_said_to_be_so(cluster: Told) -> None:
    from memskill_cli.distributed.encoder_actors import ActorEncoder

    with pytest.raises(EncoderError, match="no such folder"):
        ActorEncoder(encoder_pool(cluster, 1), "no/such/folder", "cpu")


def test_a_folder_is_called_by_the_name_it_has_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memskill_cli.distributed.encoder_actors import absolute

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert absolute("a") == f"{tmp_path}/a"
    assert absolute("dpr:a,b") == f"dpr:{tmp_path}/a,{tmp_path}/b"
    assert absolute("contriever:a@bfloat16") == f"contriever:{tmp_path}/a@bfloat16"
    assert absolute("a@bfloat16") == f"{tmp_path}/a@bfloat16"
    assert absolute("contriever:a") == f"contriever:{tmp_path}/a"
    assert [absolute(spec) for spec in ("minilm", "BAAI/bge-small-en-v1.5")] == ["minilm", "BAAI/bge-small-en-v1.5"]


# --- workers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nothing:
    """An empty job context, and empty callbacks."""

    @asynccontextmanager
    async def open(self, context: Any, callbacks: Any) -> AsyncIterator[str]:
        yield "opened"


async def double(opened: str, callbacks: Any, number: int) -> int:
    return 2 * number


async def die_once(opened: str, callbacks: Any, marker: str) -> str:
    if is_first(Path(marker)):
        os._exit(1)
    return "done at last"


def is_first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


async def die(opened: str, callbacks: Any) -> None:
    os._exit(1)


async def fail(opened: str, callbacks: Any) -> None:
    raise ValueError("seven")


class FakeContext:
    """The parts of a rollout context that a WorkerConfig uses."""

    class llm:
        ask = None

        @staticmethod
        def window(role: str) -> None:
            assert role in ROLES

    class encoders:
        class state:
            dim = 1
            aencode = prefetch = None

        retrieval = state

        @classmethod
        def _asdict(cls) -> dict[str, Any]:
            return {"state": cls.state, "retrieval": cls.retrieval}

    memory = reward = dataset = judge_prompt = None


def run(told: Told, *jobs: tuple[Any, ...], workers: int = 2) -> list[Any]:
    """What becomes of jobs that are done at once, errors among it."""

    async def work() -> list[Any]:
        from memskill_cli.distributed.ray import open_engine

        async with (
            open_engine(FakeContext(), None, workers, told.notices.append) as engine,  # type: ignore[arg-type]
            engine.open_pool(Nothing(), Nothing()) as pool,
        ):
            return await asyncio.gather(*(pool.run(*job) for job in jobs), return_exceptions=True)

    return asyncio.run(work())


def test_jobs_are_done_and_their_faults_are_told(cluster: Told) -> None:
    *done, failed = run(cluster, *((double, number) for number in range(20)), (fail,))
    assert done == [2 * number for number in range(20)]
    assert isinstance(failed, ValueError)
    assert failed.args == ("seven",)


def test_a_job_whose_worker_dies_is_done_by_another(cluster: Told, tmp_path: Path) -> None:
    cluster.notices.clear()
    assert run(cluster, (die_once, str(tmp_path / "died"))) == ["done at last"]
    lost = [notice for notice in cluster.notices if "is lost; its jobs will be retried from cache" in notice]
    assert len(lost) == 1, "other notices tell that the machine is busy"


def test_a_job_that_kills_whoever_does_it_comes_to_an_end(cluster: Told) -> None:
    (error,) = run(cluster, (die,))
    assert isinstance(error, RunError)
    assert "a job has lost 3 workers" in error.message
