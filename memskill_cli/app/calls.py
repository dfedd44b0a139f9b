"""How a function of the library runs its work: in the caller's thread, or beside the caller's event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from memskill_cli.errors import MemskillError, UsageError
from memskill_cli.utils import devices, process
from memskill_cli.utils.redaction import redact

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Callback = Callable[[Any], None]
Begin = Callable[[], Coroutine[Any, Any, T]]


class Work(Protocol[T_co]):
    """What a call does: what takes no event loop at once, the rest in the coroutine that it returns.

    It is given the caller's two callbacks, or functions that do nothing.
    """

    def __call__(self, notice: Callable[[str], None], on_epoch: Callback, /) -> Coroutine[Any, Any, T_co]: ...


def in_this_thread(name: str, work: Work[T], notice: Callback | None, on_epoch: Callback | None = None) -> T:
    """Do ``work`` here, in an event loop of its own. UsageError if this thread has a loop that runs."""
    if _has_loop():
        raise UsageError(
            f"{name}() cannot run inside a running event loop", hint=f"await memskill_cli.{name}_async(...) instead"
        )
    begin = partial(work, _redacted(notice or _nothing), on_epoch or _nothing)
    return _run(begin, lambda loop, task: None)


async def in_thread(work: Work[T], notice: Callback | None, on_epoch: Callback | None = None) -> T:
    """Do ``work`` in a thread of its own, and call back in the event loop that runs here.

    Cancelled, the work is cancelled too, and waited for.
    """
    here, call = asyncio.get_running_loop(), _ThreadCall()
    tell = _redacted(_called_in(here, notice) if notice else _nothing)
    begin = partial(work, tell, _called_in(here, on_epoch) if on_epoch else _nothing)
    ended = asyncio.wrap_future(call.start(begin))
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        call.cancel()
        await asyncio.wait([ended])
        ended.cancelled() or ended.exception()  # looked at: asyncio reports errors that nobody has seen
        raise
    finally:
        if ended.done():
            call.thread.join()  # it has nothing left to do


class _ThreadCall:
    """Work in a thread of its own, which may be cancelled from another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def start(self, begin: Begin[T]) -> Future[T]:
        result: Future[T] = Future()

        def target() -> None:
            try:
                result.set_result(_run(begin, self._started))
            except BaseException as error:  # whatever it is, it is the caller's
                result.set_exception(error)

        run = contextvars.copy_context().run
        self.thread = threading.Thread(target=run, args=(target,), name="memskill", daemon=True)
        self.thread.start()
        return result

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._task is not None and not self._task[0].is_closed():
                self._task[0].call_soon_threadsafe(self._task[1].cancel)

    def _started(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        with self._lock:
            self._task = loop, task
            if self._cancelled:
                task.cancel()


def _run(begin: Begin[T], started: Callable[[asyncio.AbstractEventLoop, Any], None]) -> T:
    with _borrowed_process():
        work = begin()

        async def whole() -> T:
            started(asyncio.get_running_loop(), asyncio.current_task())
            return await work

        # A factory keeps the runner from setting the thread's current event loop, which is the caller's to choose.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(whole())


@contextmanager
def _borrowed_process() -> Iterator[None]:
    """The process as the work needs it, then as it was; errors are without keys, as the command shows them."""
    with process.borrowed(), devices.threads_restored():
        try:
            yield
        except MemskillError as error:
            error.message, error.hint = redact(error.message), redact(error.hint)
            error.args = (error.message, *error.args[1:])
            raise


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _called_in(loop: asyncio.AbstractEventLoop, callback: Callback) -> Callback:
    """``callback``, called in ``loop`` and waited for; an error in it is raised where it was called."""

    async def call(value: Any) -> None:
        callback(value)

    return lambda value: asyncio.run_coroutine_threadsafe(call(value), loop).result()


def _redacted(notice: Callback) -> Callback:
    return lambda text: notice(redact(text))


def _nothing(_: Any) -> None:
    pass
