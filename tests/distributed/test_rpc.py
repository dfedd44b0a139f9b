"""RPC: calls, notifications and answers in any order; errors; closed endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from memskill_cli.distributed.rpc import DRIVER, Broker, MessageBatch, RpcEndpoint, RpcMessage
from memskill_cli.errors import GameError, MemskillError, RunError


class LocalBroker:
    """A broker in this process, asynchronous like the remote one."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.batches: list[int] = []

    def post(self, messages: MessageBatch) -> object:
        self.batches.append(len(messages))
        return asyncio.ensure_future(self.broker.post(messages))

    def collect(self, name: str) -> Awaitable[list[RpcMessage]]:
        return self.broker.collect(name)


@asynccontextmanager
async def connected(functions: dict[str, Callable[..., Any]]) -> AsyncIterator[tuple[RpcEndpoint, LocalBroker]]:
    """A worker's endpoint that can call the ``functions`` of the driver."""
    broker = LocalBroker()
    ends = RpcEndpoint(DRIVER, broker, functions), RpcEndpoint("worker-1", broker, {})
    serving = [asyncio.create_task(end.serve()) for end in ends]
    try:
        yield ends[1], broker
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def test_answers_find_their_questions_in_whatever_order_they_come() -> None:
    async def slowly(number: int) -> int:
        await asyncio.sleep((7 * number % 10) / 500)
        return number * number

    async def work() -> tuple[list[int], list[int]]:
        async with connected({"square": slowly}) as (worker, broker):
            answers = await asyncio.gather(*(worker.call(DRIVER, "square", number) for number in range(50)))
            return answers, broker.batches

    answers, batches = asyncio.run(work())
    assert answers == [number * number for number in range(50)]
    assert batches[0] == 50, "what is asked in one turn of the loop goes in one batch"


def test_what_is_told_arrives_in_order_and_before_what_is_asked_later() -> None:
    heard: list[int] = []

    async def so_far() -> list[int]:
        return list(heard)

    async def work() -> list[int]:
        async with connected({"hear": heard.append, "so far": so_far}) as (worker, _):
            for number in range(20):
                worker.notify(DRIVER, "hear", number)
            return await worker.call(DRIVER, "so far")  # type: ignore[no-any-return]

    assert asyncio.run(work()) == list(range(20))


@pytest.mark.parametrize(
    "error",
    [MemskillError("no", hint="type this"), GameError("g: gone", kind="died"), ValueError("seven", 7)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_raised_where_the_question_came_from_as_it_was(error: Exception) -> None:
    async def fail() -> None:
        raise error

    async def work() -> Exception:
        async with connected({"fail": fail}) as (worker, _):
            with pytest.raises(type(error)) as raised:
                await worker.call(DRIVER, "fail")
            return raised.value

    found = asyncio.run(work())
    assert (type(found), found.args, found.__dict__) == (type(error), error.args, error.__dict__)


def test_who_gives_up_an_answer_is_not_disturbed_by_it() -> None:
    async def work() -> str:
        async def late(text: str) -> str:
            await asyncio.sleep(0.05)
            return text

        async with connected({"late": late}) as (worker, _):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await worker.call(DRIVER, "late", "one")
            await asyncio.sleep(0.1)
            return await worker.call(DRIVER, "late", "two")  # type: ignore[no-any-return]

    assert asyncio.run(work()) == "two"


def test_a_desk_that_has_closed_hears_nothing_and_harms_nobody() -> None:
    async def there() -> str:
        return "there"

    async def work() -> str:
        async with connected({"there": there}) as (worker, _):
            worker.notify(DRIVER, "pool-1.span")
            return await worker.call(DRIVER, "there")  # type: ignore[no-any-return]

    assert asyncio.run(work()) == "there"


def test_whoever_waits_is_told_when_the_office_is_gone() -> None:
    class Burning(LocalBroker):
        async def collect(self, name: str) -> list[RpcMessage]:
            await asyncio.sleep(0.02)
            raise OSError("the actor died\nand more")

    async def work() -> None:
        worker = RpcEndpoint("worker-1", Burning(), {})
        serving = asyncio.create_task(worker.serve())
        with pytest.raises(RunError, match=r"lost: the actor died$"):
            await worker.call(DRIVER, "anything")
        with pytest.raises(RunError):
            await serving
        with pytest.raises(RunError):
            await worker.call(DRIVER, "anything")

    asyncio.run(work())


def test_letters_to_somebody_who_is_gone_are_kept_for_nobody() -> None:
    async def work() -> list[RpcMessage]:
        broker = Broker()
        await broker.close("worker-1")
        await broker.post([("worker-1", RpcMessage("command", 1, "", b""))])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                return await broker.collect("worker-1")
        return []

    assert asyncio.run(work()) == []
