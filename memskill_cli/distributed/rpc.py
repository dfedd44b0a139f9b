"""Letters between the process of a command and those that work for it.

Neither can call the other: a command is no actor, and those who work for it may be anywhere. So there is an *office*
with a box for each of them; who has letters for others takes many of them there at once, and who waits for letters
waits at its box. A letter asks for a function by name, or brings the answer.

Letters are pickled, as all that Ray carries is. They go between processes of this program within one cluster, and are
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

COMMAND = "command"
"""Whose box is that of the command's process."""


class Letter(NamedTuple):
    sender: str
    number: int
    """Of a question; its answer bears the same. 0: nobody waits for an answer."""
    what: str
    """The function that is asked for; "" in an answer."""
    body: bytes


Post = list[tuple[str, Letter]]
"""Letters, each with whose box it goes to."""


class Office(Protocol):
    """Where letters are taken and fetched."""

    def post(self, letters: Post) -> object: ...

    def collect(self, name: str) -> Awaitable[list[Letter]]: ...


class PostOffice:
    """The boxes. Letters to somebody who is gone go nowhere. (Ray may do two posts in another order.)"""

    def __init__(self) -> None:
        self._boxes: defaultdict[str, list[Letter]] = defaultdict(list)
        self._filled: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._gone: set[str] = set()

    async def post(self, letters: Post) -> None:
        for name, letter in letters:
            if name not in self._gone:
                self._boxes[name].append(letter)
                self._filled[name].set()

    async def collect(self, name: str) -> list[Letter]:
        """All that is in a box, as soon as there is something."""
        await self._filled[name].wait()
        self._filled[name].clear()
        return self._boxes.pop(name, [])

    async def close(self, name: str) -> None:
        """Nobody will come for these letters any more."""
        self._gone.add(name)
        self._boxes.pop(name, None)
        self._filled.pop(name, asyncio.Event()).set()  # whoever still waits is let go


class Correspondent:
    """One end: asks others for their functions, and lets them ask for its own, ``functions``. Lives in one event loop.

    :meth:`serve` must run for anything to arrive. What was posted in one turn of the loop goes to the office together.
    """

    def __init__(
        self,
        name: str,
        office: Office,
        functions: Mapping[str, Callable[..., Any]],
        dumps: Callable[[Any], bytes] = pickle.dumps,
    ) -> None:
        self._name, self._office, self._functions, self._dumps = name, office, functions, dumps
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._outgoing: Post = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None

    async def call(self, to: str, what: str, *args: Any, **kwargs: Any) -> Any:
        """What ``to``'s function gives back. Raises what it raises; RunError when the office is gone."""
        if self._failure:
            raise self._failure
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(to, number, what, (args, kwargs))
        try:
            return await answer
        finally:
            del self._waiting[number]

    def tell(self, to: str, what: str, *args: Any) -> None:
        """Have ``to``'s function called some time; whatever comes of it."""
        self._send(to, 0, what, (args, {}))

    async def serve(self) -> None:
        """Fetch letters until cancelled. Raises RunError when the office is gone, or what a told function raises; so
        does, from then on, every call."""
        try:
            while True:
                for letter in await self._collect():
                    self._open(letter)
        except Exception as error:
            self._failure = error
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(error)
            raise
        finally:
            for task in self._tasks:
                task.cancel()

    async def _collect(self) -> list[Letter]:
        try:
            return await self._office.collect(self._name)
        except Exception as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"the way to those who work for this run is lost: {what}") from None

    def _open(self, letter: Letter) -> None:
        content = pickle.loads(letter.body)  # noqa: S301 - see above
        if not letter.what:
            answer = self._waiting.get(letter.number)
            if answer and not answer.done():  # else who asked has given up
                _settle(answer, content)
            return
        function = self._functions.get(letter.what)
        if function is None:  # of a desk that has closed since
            return
        args, kwargs = content
        if not letter.number and not inspect.iscoroutinefunction(function):
            function(*args, **kwargs)
            return
        task = asyncio.create_task(self._answer(letter, function, args, kwargs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, letter: Letter, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        content: tuple[Any, Exception | None]
        try:
            content = await function(*args, **kwargs), None
        except Exception as error:
            content = None, self._portable(error)
        if letter.number:
            self._send(letter.sender, letter.number, "", content)

    def _portable(self, error: Exception) -> Exception:
        """``error``, or what it says if it does not survive a journey."""
        try:
            pickle.loads(self._dumps(error))  # noqa: S301 - see above
        except Exception:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            return RunError(f"unexpected {type(error).__name__}: {what}")
        return error

    def _send(self, to: str, number: int, what: str, content: Any) -> None:
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._dispatch)
        self._outgoing.append((to, Letter(self._name, number, what, self._dumps(content))))

    def _dispatch(self) -> None:
        letters, self._outgoing = self._outgoing, []
        self._office.post(letters)


def _settle(answer: asyncio.Future[Any], content: tuple[Any, Exception | None]) -> None:
    value, error = content
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)
