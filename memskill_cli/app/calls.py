"""Run the work of a library function: in the caller's thread, or in another thread if the caller has an event loop."""

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
    """The work of a call: does at once what needs no event loop, and returns a coroutine for the rest.

    Its arguments are the caller's two callbacks, or functions that do nothing.
    """

    def __call__(self, notice: Callable[[str], None], on_epoch: Callback, /) -> Coroutine[Any, Any, T_co]: ...


def in_this_thread(name: str, work: Work[T], notice: Callback | None, on_epoch: Callback | None = None) -> T:
    """Run ``work`` in this thread, in a new event loop. UsageError if an event loop is already running here."""
    if _has_loop():
        raise UsageError(
            f"{name}() cannot run inside a running event loop", hint=f"await memskill_cli.{name}_async(...) instead"
        )
    begin = partial(work, _redacted(notice or _nothing), on_epoch or _nothing)
    return _run(begin, lambda loop, task: None)


async def in_thread(work: Work[T], notice: Callback | None, on_epoch: Callback | None = None) -> T:
    """Run ``work`` in a new thread. The callbacks are called in the caller's event loop.

    If this call is cancelled, it cancels the work and waits until the work has ended.
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
        ended.cancelled() or ended.exception()  # asyncio logs an error that is never retrieved
        raise
    finally:
        if ended.done():
            call.thread.join()  # returns at once, because the work has ended


class _ThreadCall:
    """Work in a new thread, which can be cancelled from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def start(self, begin: Begin[T]) -> Future[T]:
        result: Future[T] = Future()

        def target() -> None:
            try:
                result.set_result(_run(begin, self._started))
            except BaseException as error:  # any error is raised again in the caller's thread
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

        # With a loop factory, the runner does not change the thread's current event loop, which belongs to the caller.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(whole())


@contextmanager
def _borrowed_process() -> Iterator[None]:
    """Set up the process for the work, then restore it. Keys are removed from errors, as on the command line."""
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
    """A function that runs ``callback`` in ``loop``, waits for it, and raises its errors."""

    async def call(value: Any) -> None:
        callback(value)

    return lambda value: asyncio.run_coroutine_threadsafe(call(value), loop).result()


def _redacted(notice: Callback) -> Callback:
    return lambda text: notice(redact(text))


def _nothing(_: Any) -> None:
    pass
