"""RPC between driver and workers via a broker actor.

They cannot call each other directly, because the driver is no Ray actor. So a *broker* has a queue per endpoint. An
endpoint posts messages in batches, and waits for the messages in its own queue. A message is a call of a function by
name, or the answer to a call.

Messages are pickled, as all data of Ray. They are exchanged only between processes of memskill in one cluster, and are
never stored.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import pickle
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from memskill_cli.errors import RunError

DRIVER = "command"
"""Name of the driver's queue."""


class RpcMessage(NamedTuple):
    sender: str
    number: int
    """Number of a call; its answer has the same number. 0: no answer is expected."""
    function: str
    """Name of the called function; "" in an answer."""
    body: bytes


MessageBatch = list[tuple[str, RpcMessage]]
"""(name of the receiver, message) pairs."""


class BrokerHandle(Protocol):
    """The methods of the broker that endpoints use."""

    def post(self, messages: MessageBatch) -> object: ...

    def collect(self, name: str) -> Awaitable[list[RpcMessage]]: ...


class Broker:
    """The queues. Messages to a closed queue are dropped. Ray may execute two posts in another order."""

    def __init__(self) -> None:
        self._queues: defaultdict[str, list[RpcMessage]] = defaultdict(list)
        self._ready: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._closed: set[str] = set()

    async def post(self, messages: MessageBatch) -> None:
        for name, message in messages:
            if name not in self._closed:
                self._queues[name].append(message)
                self._ready[name].set()

    async def collect(self, name: str) -> list[RpcMessage]:
        """Wait for messages in a queue, and return all of them."""
        await self._ready[name].wait()
        self._ready[name].clear()
        return self._queues.pop(name, [])

    async def close(self, name: str) -> None:
        """Drop a queue and its messages."""
        self._closed.add(name)
        self._queues.pop(name, None)
        self._ready.pop(name, asyncio.Event()).set()  # wake a call of collect() that still waits


class RpcEndpoint:
    """Calls functions of other endpoints, and runs its own ``functions`` for them. Belongs to one event loop.

    :meth:`serve` must run, or no message arrives. Messages sent in one iteration of the event loop are one batch.
    """

    def __init__(
        self,
        name: str,
        broker: BrokerHandle,
        functions: Mapping[str, Callable[..., Any]],
        dumps: Callable[[Any], bytes] = pickle.dumps,
    ) -> None:
        self._name, self._broker, self._functions, self._dumps = name, broker, functions, dumps
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._outgoing: MessageBatch = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None

    async def call(self, to: str, function: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a function of ``to``. Raises what it raises, and RunError if the broker is lost."""
        if self._failure:
            raise self._failure
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(to, number, function, (args, kwargs))
        try:
            return await answer
        finally:
            del self._waiting[number]

    def notify(self, to: str, function: str, *args: Any) -> None:
        """Call a function of ``to`` without waiting for a result."""
        self._send(to, 0, function, (args, {}))

    async def serve(self) -> None:
        """Receive messages until cancelled.

        Raises RunError if the broker is lost, and what a notified function raises. After that, every call raises the
        same error.
        """
        try:
            while True:
                for message in await self._collect():
                    self._open(message)
        except Exception as error:
            self._failure = error
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(error)
            raise
        finally:
            for task in self._tasks:
                task.cancel()

    async def _collect(self) -> list[RpcMessage]:
        try:
            return await self._broker.collect(self._name)
        except Exception as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"the connection to the workers of this run is lost: {what}") from None

    def _open(self, message: RpcMessage) -> None:
        content = pickle.loads(message.body)  # noqa: S301 - see above
        if not message.function:
            answer = self._waiting.get(message.number)
            if answer and not answer.done():  # else the caller was cancelled
                _settle(answer, content)
            return
        function = self._functions.get(message.function)
        if function is None:  # the pool of these callbacks has been closed
            return
        args, kwargs = content
        if not message.number and not inspect.iscoroutinefunction(function):
            function(*args, **kwargs)
            return
        task = asyncio.create_task(self._answer(message, function, args, kwargs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, message: RpcMessage, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        content: tuple[Any, Exception | None]
        try:
            content = await function(*args, **kwargs), None
        except Exception as error:
            content = None, self._portable(error)
        if message.number:
            self._send(message.sender, message.number, "", content)

    def _portable(self, error: Exception) -> Exception:
        """``error`` if it can be pickled, else a RunError with its text."""
        try:
            pickle.loads(self._dumps(error))  # noqa: S301 - see above
        except Exception:  # classes of other packages can fail in any way when they are pickled
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            return RunError(f"unexpected {type(error).__name__}: {what}")
        return error

    def _send(self, to: str, number: int, function: str, content: Any) -> None:
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._dispatch)
        self._outgoing.append((to, RpcMessage(self._name, number, function, self._dumps(content))))

    def _dispatch(self) -> None:
        messages, self._outgoing = self._outgoing, []
        self._broker.post(messages)


def _settle(answer: asyncio.Future[Any], content: tuple[Any, Exception | None]) -> None:
    value, error = content
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)
