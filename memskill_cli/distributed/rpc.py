"""Calls of the driver's functions by workers.

Ray lets a process call actors. The workers are actors and the driver is not, so a worker cannot call it. Instead the
driver fetches each worker's calls (:meth:`DriverClient.collect`), runs them, and returns the answers
(:meth:`DriverClient.deliver`). Calls and answers of one iteration of the event loop are one batch.

Messages are pickled, as all data of Ray. They are exchanged only between processes of memskill in one cluster, and are
never stored.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import pickle
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from memskill_cli.errors import RunError


class RpcCall(NamedTuple):
    number: int
    """The answer has the same number. 0: no answer is expected."""
    function: str
    body: bytes
    """Pickled (args, kwargs)."""


class RpcAnswer(NamedTuple):
    number: int
    body: bytes
    """Pickled (value, error)."""


class WorkerHandle(Protocol):
    """A worker, as the driver sees it."""

    def collect(self) -> Awaitable[list[RpcCall]]: ...

    def deliver(self, answers: list[RpcAnswer]) -> object: ...


class DriverClient:
    """In a worker: calls functions of the driver. Belongs to the event loop in which it is created."""

    def __init__(self, dumps: Callable[[Any], bytes] = pickle.dumps) -> None:
        self._dumps = dumps
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._calls: list[RpcCall] = []
        self._ready = asyncio.Event()

    async def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a function of the driver. Raises what it raises."""
        number = next(self._numbers)
        answer = self._waiting[number] = self._loop.create_future()
        self._send(number, function, (args, kwargs))
        try:
            return await answer
        finally:
            del self._waiting[number]

    def notify(self, function: str, *args: Any) -> None:
        """Call a function without waiting for a result."""
        self._send(0, function, (args, {}))

    def call_from_thread(self, function: str, *args: Any) -> Any:
        """:meth:`call`, blocking, for a thread other than the event loop's."""
        return asyncio.run_coroutine_threadsafe(self.call(function, *args), self._loop).result()

    async def collect(self) -> list[RpcCall]:
        """Wait for calls, and return all of them."""
        await self._ready.wait()
        self._ready.clear()
        calls, self._calls = self._calls, []
        return calls

    def deliver(self, answers: list[RpcAnswer]) -> None:
        """Give the answers to those who wait for them."""
        for number, body in answers:
            value, error = pickle.loads(body)  # noqa: S301 - from the driver
            answer = self._waiting.get(number)
            if answer is None or answer.done():  # the caller was cancelled
                continue
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(error)

    def _send(self, number: int, function: str, content: Any) -> None:
        self._calls.append(RpcCall(number, function, self._dumps(content)))
        self._ready.set()


class DriverServer:
    """In the driver: runs ``functions`` for workers. Belongs to one event loop."""

    def __init__(
        self, functions: Mapping[str, Callable[..., Any]], dumps: Callable[[Any], bytes] = pickle.dumps
    ) -> None:
        self._functions, self._dumps = functions, dumps
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, worker: WorkerHandle) -> None:
        """Run the calls of a worker until cancelled. Raises what ``collect`` and notified functions raise."""
        answers = _Answers(worker)
        while True:
            for call in await worker.collect():
                self._run(call, answers)

    def close(self) -> None:
        """Cancel the functions that are running."""
        for task in self._tasks:
            task.cancel()

    def _run(self, call: RpcCall, answers: _Answers) -> None:
        function = self._functions.get(call.function)
        if function is None:  # the pool of these callbacks has been closed
            return
        args, kwargs = pickle.loads(call.body)  # noqa: S301 - from a worker
        if not call.number and not inspect.iscoroutinefunction(function):
            function(*args, **kwargs)
            return
        task = asyncio.create_task(self._answer(call.number, partial(function, *args, **kwargs), answers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, run: Callable[[], Awaitable[Any]], answers: _Answers) -> None:
        """Run a function and answer its call, whatever happens: the worker waits without a time limit."""
        body = self._dumps((None, RunError("the call was cancelled by the driver")))
        try:
            body = self._dumps((await run(), None))
        except Exception as error:  # also if the value cannot be pickled
            body = self._dumps((None, self._portable(error)))
        finally:
            if number:
                answers.add(RpcAnswer(number, body))

    def _portable(self, error: Exception) -> Exception:
        """``error`` if it can be pickled, else a RunError with its text."""
        try:
            pickle.loads(self._dumps(error))  # noqa: S301 - see above
        except Exception:  # classes of other packages can fail in any way when they are pickled
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            return RunError(f"unexpected {type(error).__name__}: {what}")
        return error


class _Answers:
    """The answers to one worker, delivered at the end of an iteration of the event loop."""

    def __init__(self, worker: WorkerHandle) -> None:
        self._worker = worker
        self._batch: list[RpcAnswer] = []

    def add(self, answer: RpcAnswer) -> None:
        if not self._batch:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._batch.append(answer)

    def _deliver(self) -> None:
        answers, self._batch = self._batch, []
        self._worker.deliver(answers)
