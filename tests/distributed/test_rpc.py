"""RPC: calls, notifications and answers in any order; errors; closed endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from memskill_cli.distributed.rpc import DriverClient, DriverServer, RpcAnswer, RpcCall
from memskill_cli.errors import GameError, MemskillError, RunError


class LocalWorker(DriverClient):
    """A worker in this process, asynchronous like a remote one."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def collect(self) -> list[RpcCall]:
        calls = await super().collect()
        self.batches.append(len(calls))
        return calls

    def deliver(self, answers: list[RpcAnswer]) -> None:
        asyncio.get_running_loop().call_soon(super().deliver, answers)


@asynccontextmanager
async def connected(functions: dict[str, Callable[..., Any]]) -> AsyncIterator[LocalWorker]:
    """A worker that can call the ``functions`` of the driver."""
    server, worker = DriverServer(functions), LocalWorker()
    serving = asyncio.create_task(server.serve(worker))
    try:
        yield worker
    finally:
        serving.cancel()
        server.close()
        await asyncio.gather(serving, return_exceptions=True)


def test_answers_find_their_questions_in_whatever_order_they_come() -> None:
    async def slowly(number: int) -> int:
        await asyncio.sleep((7 * number % 10) / 500)
        return number * number

    async def work() -> tuple[list[int], list[int]]:
        async with connected({"square": slowly}) as worker:
            answers = await asyncio.gather(*(worker.call("square", number) for number in range(50)))
            return answers, worker.batches

    answers, batches = asyncio.run(work())
    assert answers == [number * number for number in range(50)]
    assert batches[0] == 50, "what is asked in one turn of the loop goes in one batch"


def test_what_is_told_arrives_in_order_and_before_what_is_asked_later() -> None:
    heard: list[int] = []

    async def so_far() -> list[int]:
        return list(heard)

    async def work() -> list[int]:
        async with connected({"hear": heard.append, "so far": so_far}) as worker:
            for number in range(20):
                worker.notify("hear", number)
            return await worker.call("so far")  # type: ignore[no-any-return]

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
        async with connected({"fail": fail}) as worker:
            with pytest.raises(type(error)) as raised:
                await worker.call("fail")
            return raised.value

    found = asyncio.run(work())
    assert (type(found), found.args, found.__dict__) == (type(error), error.args, error.__dict__)


def test_who_gives_up_an_answer_is_not_disturbed_by_it() -> None:
    async def work() -> str:
        async def late(text: str) -> str:
            await asyncio.sleep(0.05)
            return text

        async with connected({"late": late}) as worker:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await worker.call("late", "one")
            await asyncio.sleep(0.1)
            return await worker.call("late", "two")  # type: ignore[no-any-return]

    assert asyncio.run(work()) == "two"


def test_a_desk_that_has_closed_hears_nothing_and_harms_nobody() -> None:
    async def there() -> str:
        return "there"

    async def work() -> str:
        async with connected({"there": there}) as worker:
            worker.notify("pool-1.span")
            return await worker.call("there")  # type: ignore[no-any-return]

    assert asyncio.run(work()) == "there"


def test_a_notified_function_that_fails_stops_the_serving() -> None:
    def full() -> None:
        raise RunError("the disk is full")

    async def work() -> None:
        worker = LocalWorker()
        worker.notify("full")
        with pytest.raises(RunError, match="the disk is full"):
            await DriverServer({"full": full}).serve(worker)

    asyncio.run(work())


def test_an_error_that_cannot_be_pickled_is_told_by_its_text() -> None:
    class LocalError(Exception):
        pass

    async def fail() -> None:
        raise LocalError("seven\nand more")

    async def work() -> None:
        async with connected({"fail": fail}) as worker:
            with pytest.raises(RunError, match=r"unexpected LocalError: seven$"):
                await worker.call("fail")

    asyncio.run(work())


def test_every_call_is_answered_also_by_what_cannot_be_sent_or_is_cancelled() -> None:
    async def unsendable() -> Any:
        return lambda: None

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def work() -> None:
        async with connected({"unsendable": unsendable, "cancelled": cancelled}) as worker:
            with pytest.raises(AttributeError, match="pickle"):
                await asyncio.wait_for(worker.call("unsendable"), 30)
            with pytest.raises(RunError, match="cancelled by the driver"):
                await asyncio.wait_for(worker.call("cancelled"), 30)

    asyncio.run(work())
